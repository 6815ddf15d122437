"""Dictionaries on the Hugging Face hub: a repository is a dictionary's folder with a model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isotrace.base.errors import DictionaryError
from isotrace.base.identity import identity
from isotrace.dictionaries.config import DictionaryFile, SubjectReference
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary, read_record, save_dictionary
from isotrace.dictionaries.shelf import TABLES, put, read_part

FILES = ("*.json", "weights.safetensors", "*.parquet", "README.md")  # the shelf's among them: `*` goes into folders


def save_pretrained(
    dictionary: Dictionary,
    folder: str | Path,
    subject: SubjectReference,
    *,
    dtype: torch.dtype,
    training: Mapping[str, Any],
) -> Path:
    """Write a dictionary's folder, its card, and what stands on its shelf and is still about it: not where weights were
    changed, or rounded by `dtype`. Raises DictionaryError for a weight that does not fit `dtype`."""
    folder = Path(folder)
    save_dictionary(dictionary, folder, subject, dtype=dtype, training=training)
    own = identity(load_dictionary(folder))
    if dictionary.folder is not None and own == identity(load_dictionary(dictionary.folder)):
        for part in TABLES:
            if found := read_part(part, dictionary.folder, own):
                put(part, folder, own, found)
    (folder / "README.md").write_text(card(read_record(folder)))
    return folder


def push_to_hub(folder: str | Path, name: str, *, private: bool, message: str = "Add dictionary") -> str:
    """Upload the dictionary in `folder` to the repository `name` (`org/name`), made if it is not there; returns the
    commit's address. Only a dictionary that loads is uploaded, and of the folder only `FILES`; a card is written if
    there is none. You must be logged in (`hf auth login`). Raises DictionaryError."""
    from huggingface_hub import HfApi

    folder = Path(folder)
    load_dictionary(folder)
    if not (folder / "README.md").is_file():
        (folder / "README.md").write_text(card(read_record(folder)))
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    except Exception as error:
        raise DictionaryError(
            f"cannot push to {name!r} ({type(error).__name__}): check the name, the network and `hf auth login`."
        ) from error
    return str(commit.commit_url)


def hub_folder(name: str) -> Path:
    """Download `org/name` or `org/name@revision`, or find it in the cache. Raises DictionaryError."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:
        raise DictionaryError(
            f"cannot get {name!r} from the hub ({type(error).__name__}): check name and network."
        ) from error


def card(record: DictionaryFile) -> str:
    """A model card from what the record says; nothing in it is guessed, so it names no licence."""
    config, subject = record.config, record.subject
    header = ["---", "library_name: isotrace", "tags:", "- isotrace", f"- {config.architecture}"]
    if subject.source.startswith("hf:"):
        header.append(f"base_model: {subject.source.removeprefix('hf:').partition('@')[0]}")
    k = f", k = {config.k}" if config.k else ""
    rows = {
        "architecture": f"{config.architecture}, {config.activation}{k}",
        "features": f"{config.n_features} per layer",
        "layers": ", ".join(map(str, config.layers)),
        "reads → writes": f"`{config.hookpoint_in}` → `{config.hookpoint_out}`",
        "subject": f"`{subject.source}`, {subject.n_layers} layers of {subject.d_model}",
        "subject's weights (sha256)": f"`{subject.weights_sha256}`",
        "weights": f"{record.weights_dtype}, sha256 `{record.weights_sha256}`",
    }
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    use = ["```python", "import isotrace", ""]
    use += ['dictionary = isotrace.load_dictionary("hf:ORG/NAME")', "```"]
    title = [f"# {config.architecture} for {subject.source}", ""]
    how = ["Loading checks the weights, their fingerprint and, if given, the subject. How it was trained is in "]
    how[0] += "`dictionary.json` under `training`."
    return "\n".join([*header, "---", "", *title, *table, "", *use, "", *how, ""])

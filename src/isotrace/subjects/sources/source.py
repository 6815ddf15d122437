"""Where a subject's files are: source strings, and the hashes that tie dictionaries to subjects."""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from isotrace.base.errors import SubjectError
from isotrace.base.settings import expanded
from isotrace.subjects.sources.adapter import base_of, is_adapter, settings
from isotrace.subjects.sources.layouts import PATTERNS, translated

BUNDLED = ("molm",)
# What the weights are in: the first kind that is there. A `.bin` is read without running code of it.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Configs, and what tokenizers are made of: tokenizer.json, vocab.json, vocab.txt and merges.txt, sentencepiece models
# (spiece.model, spm.model, tokenizer.model).
DOWNLOADED = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class SubjectFiles:
    """`folder` in the Hugging Face layout; `weights_sha256` over its weight files; `domain` may be None. `adapter`: the
    folder of the adapter that is merged into the model of `folder`, whose weights are hashed with it."""

    source: str
    folder: Path
    domain: str | None
    weights_sha256: str
    adapter: Path | None = None


def assets() -> Path:
    return Path(str(resources.files("isotrace") / "assets"))


def resolve(source: str, domain: str | None) -> SubjectFiles:
    """Raises SubjectError when nothing is there, or when the weights differ from their recorded hash."""
    scheme, _, name = source.partition(":")
    if scheme == "bundled":
        if name not in BUNDLED:
            raise SubjectError(f"no bundled subject {name!r}: there is {', '.join('bundled:' + b for b in BUNDLED)}.")
        folder = assets() / name
    elif scheme == "hf":
        folder = _download(name)
    elif scheme == "pypi":
        from isotrace.subjects.sources.pypi import obtain

        folder = obtain(name)
    else:
        folder = Path(expanded(source))
    if is_adapter(folder):
        return _adapted(source, folder, domain)
    return _model(source, folder, domain)


def _adapted(source: str, folder: Path, domain: str | None) -> SubjectFiles:
    settings(folder, source)
    place = base_of(folder, source)
    base = _model(source, folder, domain) if place == folder else resolve(str(place), None)
    digest = hashlib.sha256(f"{base.weights_sha256} {weights_hash(folder)}".encode()).hexdigest()
    recorded = _recorded(source, folder, weights_hash(folder)) or base.domain
    return SubjectFiles(source, base.folder, domain or recorded, digest, folder)


def _model(source: str, given: Path, domain: str | None) -> SubjectFiles:
    folder = translated(source, given)
    if not (folder / "config.json").is_file():
        raise SubjectError(
            f"{source!r} is no subject: name one that `isotrace subjects` lists, hf:org/name or a folder in its layout."
        )
    if not weight_files(folder):
        raise SubjectError(f"{source!r} has no weights ({' or '.join(WEIGHTS)}): save it with save_pretrained.")
    digest = weights_hash(folder)
    recorded = _recorded(source, folder, digest)  # which also compares the hash
    if folder != given:  # what the user had it remember
        recorded = _recorded(source, given, weights_hash(given)) or recorded
    return SubjectFiles(source, folder, domain or recorded, digest)


def _recorded(source: str, folder: Path, digest: str) -> str | None:
    """The domain that `subject.json` names, if there is one. Raises SubjectError if it records other weights."""
    record = folder / "subject.json"
    if record.is_file():
        keys = {"format", "format_version", "domain", "weights_sha256"}
        try:
            recorded = json.loads(record.read_text())
        except ValueError:
            recorded = {}
        valid = isinstance(recorded, dict) and set(recorded) == keys
        if not valid or (recorded["format"], recorded["format_version"]) != ("isotrace-subject", 1):
            raise SubjectError(f"{record.name} of {source!r} is not an isotrace-subject version 1: rebuild it.")
        if recorded["weights_sha256"] != digest:
            remedy = f"remove {folder} and try again" if source.startswith("pypi:") else "reinstall"
            raise SubjectError(f"the weights of {source} differ from their recorded hash: they are damaged, {remedy}.")
        return recorded["domain"]
    return None


def look(source: str) -> Path | None:
    """The folder of a source that is on this machine and in no cache. Raises SubjectError as `resolve` does, where it
    can be told without fetching or reading the weights."""
    scheme, _, name = source.partition(":")
    if scheme == "pypi":
        from isotrace.subjects.sources.published import find

        find(name)
    if scheme in ("pypi", "hf"):
        return None
    folder = assets() / name if scheme == "bundled" and name in BUNDLED else Path(expanded(source))
    here = (folder / "config.json").is_file() or is_adapter(folder)
    return folder if here else resolve(source, None).folder


def weights_hash(folder: Path) -> str:
    """sha256 over the weight files of a subject, in the order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """In the order of their names; of one kind only, see `WEIGHTS`."""
    return next((found for kind in WEIGHTS if (found := sorted(folder.glob(kind)))), [])


def write_record(folder: Path, domain: str) -> None:
    """Write `subject.json` beside saved weights, so that damage is noticed when they are loaded."""
    record = {"format": "isotrace-subject", "format_version": 1, "domain": domain}
    (folder / "subject.json").write_text(json.dumps(record | {"weights_sha256": weights_hash(folder)}, indent=2) + "\n")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=[*DOWNLOADED, WEIGHTS[0]]))
        if not weight_files(folder):
            snapshot_download(repo, revision=revision or None, allow_patterns=[*DOWNLOADED, *WEIGHTS, *PATTERNS])
        return folder
    except Exception as error:
        raise SubjectError(
            f"cannot get {name!r} from the hub ({type(error).__name__}): check name and network."
        ) from error

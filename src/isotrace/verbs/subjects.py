"""Which models can be named, and what one of them is."""

from pathlib import Path
from typing import Annotated, Any

from isotrace.verbs.request import PLACE, Answer, Progress, Request, verb


class SubjectsRequest(Request):
    source: Annotated[str | None, PLACE] = None
    """Load this one and print its facts: bundled:NAME, pypi:package/model, hf:org/name, folder."""
    domain: str | None = None
    """What its tokens stand for, where it does not say."""
    remember: bool = False
    """Write the domain into the folder (subject.json), so that no command need be told it again."""

    def look(self) -> None:
        if self.source is not None:
            from isotrace.subjects.sources.source import look

            look(self.source)


@verb(SubjectsRequest)
def subjects(request: SubjectsRequest, progress: Progress) -> Answer:
    """List the bundled and published subjects, or load one and print its facts."""
    if request.source is None:
        return Answer({"subjects": listed()})
    found = facts(request.source, request.domain)
    if request.remember:
        remember(request.source, request.domain)
    return Answer(found)


def remember(source: str, domain: str | None) -> None:
    """Raises InputError without a domain, and for a subject whose files are not the user's."""
    from isotrace.base.errors import InputError
    from isotrace.subjects.sources.source import write_record

    if domain is None:
        raise InputError("which domain shall the folder remember? Give --domain with --remember.")
    if not Path(source).is_dir():
        raise InputError(f"{source!r} is no folder of yours: --remember writes into a folder.")
    write_record(Path(source), domain)


def listed() -> list[dict[str, Any]]:
    """One row per subject that is bundled or carried by a known wheel; nothing is downloaded or loaded.

    `megabytes` (10⁶ bytes) is on disk for a bundled subject, else the download: a wheel may carry several subjects.
    """
    from isotrace.subjects.sources.published import SUBJECTS
    from isotrace.subjects.sources.pypi import is_cached
    from isotrace.subjects.sources.source import BUNDLED

    rows = [bundled(name) for name in BUNDLED]
    for subject in SUBJECTS:
        names = ("source", "architecture", "n_layers", "d_model", "domain", "about")
        row = {name: getattr(subject, name) for name in names}
        wheel = subject.wheel
        row |= {"licence": wheel.licence, "paper": wheel.paper, "megabytes": wheel.megabytes}
        rows.append(row | {"cached": is_cached(subject)})
    return rows


def bundled(name: str) -> dict[str, Any]:
    """A row of `listed`, read from the files of the bundled subject."""
    from json import loads

    from isotrace.subjects.sources.source import assets

    folder = assets() / name
    config, record = (loads((folder / file).read_text()) for file in ("config.json", "subject.json"))
    return {
        "source": f"bundled:{name}",
        "architecture": config["architectures"][0],
        "n_layers": config["num_hidden_layers"],
        "d_model": config["hidden_size"],
        "domain": record["domain"],
        "about": "trained by this project on SMILES, see its card",
        "licence": "Apache-2.0",
        "paper": None,
        "megabytes": round(sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 1e6, 1),
        "cached": True,
    }


def facts(source: str, domain: str | None) -> dict[str, Any]:
    """What a loaded subject is. Raises SubjectError when it cannot be loaded."""
    from isotrace.subjects.heads.pooled import kinds_of
    from isotrace.subjects.loading import tokenizer_hash
    from isotrace.subjects.subject import load_subject

    subject = load_subject(source, domain=domain, device="cpu")
    return {
        "source": subject.source,
        "family": subject.family.model_type,
        "architecture": (subject.model.config.architectures or [type(subject.model).__name__])[0],
        "language_model_head": subject.has_head,
        "task_head": None if subject.task is None else subject.task.about(),
        "n_layers": subject.n_layers,
        "d_model": subject.d_model,
        "parameters": subject.model.num_parameters(),
        "vocabulary": len(subject.tokenizer),
        "max_tokens": subject.max_tokens,
        "domain": subject.files.domain,
        "hookpoints": [f"layers.N.{kind}" for kind in (*subject.family.hookpoints, *kinds_of(subject))],
        "weights_sha256": subject.files.weights_sha256,
        "tokenizer_sha256": tokenizer_hash(subject.tokenizer),
        "folder": str(subject.files.folder),
    }

"""Is this installation fit for use?"""

import os
import platform
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from isotrace.base.errors import DictionaryError, IsotraceError, RunError
from isotrace.verbs.request import Answer, Progress, Request, verb

HARD = (
    "[13CH3][C@@H](N)C(=O)O",
    "C1CC2CCC1%11CC%11C2",
    "[Na+].[Cl-].O=S(=O)([O-])c1ccccc1",
    "F/C=C/c1cc[nH]c1",
    "[2H]C([2H])([2H])[Se]C#N",
    "C[N+](C)(C)CC(O[P-](F)(F)(F)(F)F)=O",
)


class DoctorRequest(Request):
    out: Path = Path(".")
    """Folder whose write access is checked."""


@verb(DoctorRequest)
def doctor(request: DoctorRequest, progress: Progress) -> Answer:
    """Check versions, bundled files, determinism, token maps, dictionary matching and write access."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", versions),
        ("here", here),
        ("bundled files", bundled),
        ("determinism", determinism),
        ("token map", token_maps),
        ("dictionary match", dictionary_match),
        ("registered", registered),
        ("write access", lambda: write_access(request.out)),
    ]
    results = []
    for name, check in progress(checks, "checking"):
        try:
            results.append({"check": name, "ok": True, "detail": check()})
        except (IsotraceError, OSError) as error:
            results.append({"check": name, "ok": False, "detail": str(error)})
    failed = ", ".join(result["check"] for result in results if not result["ok"])
    failure = f"doctor found a problem with: {failed}; see docs/errors.md." if failed else None
    return Answer({"ok": not failed, "checks": results}, failure)


def versions() -> str:
    from importlib.metadata import version

    names = ("isotrace", "torch", "transformers", "rdkit", "numpy", "polars", "safetensors")
    return f"python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in names)


def here() -> str:
    """Threads, devices, the cache and what is installed of the extras: what explains a slow or a refused command."""
    import torch

    from isotrace.subjects.sources.pypi import cache_folder

    extras = {"fast": "numba", "antibody": "immunum", "structure": "gemmi", "sentencepiece": "sentencepiece"}
    missing = ", ".join(name for name, module in extras.items() if find_spec(module) is None)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{torch.get_num_threads()} threads (OMP_NUM_THREADS) of {os.cpu_count()} processors, {device}, cache "
        f"{cache_folder()} (ISOTRACE_CACHE), {f'extras not installed: {missing}' if missing else 'all extras'}"
    )


def registered() -> str:
    """How much is known by name, and what of it is not of isotrace; an entry point that cannot be loaded raises."""
    from isotrace.base.registry import report

    found = report()
    counts = ", ".join(f"{len(names)} {group.partition('.')[2]}" for group, names in found.items())
    foreign = [
        f"{name} ({group.partition('.')[2]}) of {origin}"
        for group, names in found.items()
        for name, origin in names.items()
        if origin.partition(".")[0] != "isotrace"
    ]
    return "; ".join([counts, *foreign])


def bundled() -> str:
    """Loading checks checksums, fingerprints and non-finite weights."""
    from isotrace.verbs.tracing import Tracer

    tracer = Tracer("bundled:molm", "bundled:molm-clt")
    config = tracer.dictionary.config
    return f"molm {tracer.subject.n_layers} × {tracer.subject.d_model}, {config.n_features} features per layer, intact"


def determinism() -> str:
    from isotrace.attribution.trace import TraceConfig
    from isotrace.base.runs import dumps
    from isotrace.verbs.tracing import Tracer

    config = TraceConfig(max_features=50, n_nodes=4, n_controls=2, n_spellings=1)
    tracer = Tracer("bundled:molm", "bundled:molm-clt")
    first, second = (dumps(tracer.trace("CCOC(=O)c1ccncc1", "mask:3", config).to_dict()) for _ in range(2))
    if first != second:
        raise RunError("two identical traces differ: set OMP_NUM_THREADS=1 and try again")
    return "two identical traces give the same JSON"


def token_maps() -> str:
    from isotrace.domains.molecule import parse, token_map
    from isotrace.subjects.subject import load_subject

    subject = load_subject("bundled:molm")
    for smiles in HARD:
        mol = parse(smiles)
        batch = subject.tokenize([smiles])
        units = token_map(smiles, subject.tokens(batch.ids[0]), batch.offsets[0])
        covered = {a for u in units if u.kind == "atom" for a in u.atoms}
        if missing := set(range(mol.GetNumAtoms())) - covered:
            raise RunError(f"tokens of {smiles} miss the atoms {sorted(missing)}: reinstall")
    return f"{len(HARD)} hard SMILES: every atom has its token"


def dictionary_match() -> str:
    """The bundled dictionary must be refused on a subject with other weights."""
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.subjects.loading import quiet
    from isotrace.subjects.subject import load_subject

    subject = load_subject("bundled:molm")
    with tempfile.TemporaryDirectory() as name:
        parameter = next(subject.model.parameters())
        parameter.data[0, 0] += 1.0
        with quiet():
            subject.model.save_pretrained(name)
        subject.tokenizer.save_pretrained(name)
        try:
            load_dictionary("bundled:molm-clt", load_subject(name))
        except DictionaryError:
            return "a subject with one altered weight is refused"
    raise RunError("the bundled dictionary was accepted on an altered subject: reinstall")


def write_access(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"isotrace")
        file.flush()
        os.fsync(file.fileno())
    return f"{folder.resolve()} can be written"

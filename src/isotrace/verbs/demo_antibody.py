"""An antibody, from nothing to pages: a published model, a dictionary trained in minutes, its names, its traces."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isotrace.base.errors import InputError
from isotrace.verbs.request import Answer, Progress

if TYPE_CHECKING:
    from isotrace.domains.domain import Domain
    from isotrace.verbs.demo import DemoRequest

SUBJECT = "pypi:sapiens/vh"
NAME = "trastuzumab, heavy chain"
CHAIN = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDY"
    "WGQGTLVTVSS"
)
TARGETS = ("mask:103", "mutation:W99A")  # both in CDR3
FEATURES, K, TOKENS = 1_024, 24, 400_000
HELD_OUT = 0.2
"""Share of the clones on which the dictionary is measured and not trained."""


def antibodies(request: "DemoRequest", progress: Progress) -> Answer:
    """Every step lies in a folder of its own and is left as it is where it is complete."""
    from isotrace.base.files import locked, write_whole
    from isotrace.base.progress import slug
    from isotrace.base.runs import SUMMARY, open_run
    from isotrace.datasets.inputs import rejects_frame
    from isotrace.report.trace.index import Traces
    from isotrace.verbs.demo import home
    from isotrace.verbs.trace import TraceRequest, traced
    from isotrace.verbs.tracing import Tracer

    own = dictionary(request, progress)
    tracer = Tracer(SUBJECT, own, names=request.out / "names", fidelity=request.out / "fidelity")
    arguments: dict[str, Any] = {"command": request.command, "seed": request.seed, "inputs": {}, "overwrite": False}
    with locked(request.out), open_run(request.out / SUMMARY, **arguments, home="../index.html") as run:
        found, folders = [], [slug(target) for target in TARGETS]
        for target, folder in zip(progress(TARGETS, "tracing"), folders, strict=True):
            place = request.out / folder
            both: dict[str, Any] = {"names": request.out / "names", "fidelity": request.out / "fidelity"}
            asked = TraceRequest(
                subject=SUBJECT, dictionary=own, data=CHAIN, target=target, seed=request.seed, out=place, **both
            )
            row, up = {"sequence": CHAIN, "name": NAME}, f"../{SUMMARY}/report.html"
            found.append((0, traced(asked, tracer, row, place, go_on=True, home=up)))
        result = Traces.of("Why this residue?", tracer.about, found, folders, rejects_frame(()))
        result.write(run)
        links = (
            ("summary", f"{NAME}: why this residue behind a mask?"),
            ("names", "What the features mean: regions, IMGT positions, residues"),
            ("fidelity", "How much of the model the dictionary keeps, on clones that it has not seen"),
        )
        write_whole(request.out / "index.html", home(links, folders).encode())
    return Answer({"traces": result.summary["traces"], "index": str(request.out / "index.html")})


def dictionary(request: "DemoRequest", progress: Progress) -> Path:
    """Trained on heavy chains of the packaged table, named on all of them, measured on clones that were held out."""
    from isotrace.domains.domain import domain_of
    from isotrace.stats.splits import deal
    from isotrace.studies.study import bundled_table
    from isotrace.verbs.annotate import AnnotateRequest, annotate
    from isotrace.verbs.evaluate import EvaluateRequest, evaluate
    from isotrace.verbs.train import TrainRequest, train

    own, names, fidelity = (request.out / name for name in ("dictionary", "names", "fidelity"))
    table = bundled_table("antibodies")
    domain = domain_of("antibody")
    chains = [
        chain for chain in sorted(set(table.filter(table["chain"] == "heavy")["sequence"])) if read(domain, chain)
    ]
    held = deal(domain.groups(chains), (1 - HELD_OUT, HELD_OUT), request.seed) == 1
    learn, rest = ([c for c, out in zip(chains, held, strict=True) if out == side] for side in (False, True))
    if not complete(own):
        shape: dict[str, Any] = {"architecture": "crosslayer", "features": FEATURES, "k": K, "tokens": TOKENS}
        asked = TrainRequest(subject=SUBJECT, data=learn, out=own, resume=(own / "checkpoint.pt").is_file(), **shape)
        train(asked, progress=progress)
    both: dict[str, Any] = {"subject": SUBJECT, "seed": request.seed}
    if not complete(fidelity):
        evaluate(EvaluateRequest(dictionary=(own,), data=rest, out=fidelity, **both), progress=progress)
    if not complete(names):
        few: dict[str, Any] = {"sources": ("dictionary", "neurons"), "permutations": 100, "bootstrap": 50}
        asked = AnnotateRequest(dictionary=own, data=chains, out=names, effects=False, **few, **both)
        annotate(asked, progress=progress)
    return own


def read(domain: "Domain", chain: str) -> bool:
    """Whether it is an antibody to the domain; a few of the table have lost too much of theirs."""
    try:
        domain.check(chain)
    except InputError:
        return False
    return True


def complete(folder: Path) -> bool:
    from isotrace.base.runs import MANIFEST, read_manifest

    return (folder / MANIFEST).is_file() and read_manifest(folder)["status"] == "complete"

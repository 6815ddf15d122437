"""An antibody, from nothing to pages: a published model, a dictionary trained in minutes, its names, its traces."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isotrace.base.errors import InputError
from isotrace.verbs.request import Answer, Progress

if TYPE_CHECKING:
    from isotrace.domains.domain import Domain
    from isotrace.subjects.subject import Subject
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
    """Every step lies in a folder of its own and is left as it is where it is done."""
    from isotrace.base.progress import slug
    from isotrace.subjects.subject import load_subject
    from isotrace.verbs.demo import Job, traced_pages
    from isotrace.verbs.tracing import Tracer

    subject = load_subject(SUBJECT)
    told: dict[str, Any] = {name: request.out / name for name in ("names", "fidelity")}
    made = {"subject": SUBJECT, "dictionary": dictionary(request, subject, progress), **told}
    links = (
        ("summary", f"{NAME}: why this residue behind a mask?"),
        ("names", "What the features mean: regions, IMGT positions, residues"),
        ("fidelity", "How much of the model the dictionary keeps, on clones that it has not seen"),
    )
    jobs = [Job(0, NAME, CHAIN, target, slug(target)) for target in TARGETS]
    tracer = Tracer(subject, made["dictionary"], **told)
    return traced_pages(request, tracer, made, "Why this residue?", jobs, lambda: ({}, links, []), progress)


def dictionary(request: "DemoRequest", subject: "Subject", progress: Progress) -> Path:
    """Trained on heavy chains of the packaged table, named on all of them, measured on clones that were held out."""
    from isotrace.base.runs import is_done
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.domains.domain import domain_of
    from isotrace.stats.splits import deal
    from isotrace.studies.study import bundled_table
    from isotrace.verbs.annotate import AnnotateRequest, annotate
    from isotrace.verbs.evaluate import EvaluateRequest, evaluate
    from isotrace.verbs.loading import run_of
    from isotrace.verbs.train import TrainRequest, train
    from isotrace.verbs.training import run_of as training_of

    own, names, fidelity = (request.out / name for name in ("dictionary", "names", "fidelity"))
    table = bundled_table("antibodies")
    domain = domain_of("antibody")
    chains = [
        chain for chain in sorted(set(table.filter(table["chain"] == "heavy")["sequence"])) if read(domain, chain)
    ]
    held = deal(domain.groups(chains), (1 - HELD_OUT, HELD_OUT), request.seed) == 1
    learn, rest = ([c for c, out in zip(chains, held, strict=True) if out == side] for side in (False, True))
    always: dict[str, Any] = {"subject": SUBJECT, "seed": request.seed, "overwrite": True}
    shape: dict[str, Any] = {"architecture": "crosslayer", "features": FEATURES, "k": K, "tokens": TOKENS}
    learning = TrainRequest(data=learn, out=own, resume=stopped(own, request.seed), **shape, **always)
    if not is_done(own, **training_of(learning, subject, request.seed)):
        train(learning, progress=progress)
    made = load_dictionary(own, subject)
    measuring = EvaluateRequest(dictionary=(own,), data=rest, out=fidelity, **always)
    if not is_done(fidelity, **run_of(measuring, subject, made)):
        evaluate(measuring, progress=progress)
    few: dict[str, Any] = {"sources": ("dictionary", "neurons"), "permutations": 100, "bootstrap": 50}
    naming = AnnotateRequest(dictionary=own, data=chains, out=names, effects=False, **few, **always)
    if not is_done(names, **run_of(naming, subject, made)):
        annotate(naming, progress=progress)
    return own


def stopped(folder: Path, seed: int) -> bool:
    """Whether training with this seed was stopped there, and can go on."""
    from isotrace.base.runs import read_manifest

    return (folder / "checkpoint.pt").is_file() and read_manifest(folder)["seed"] == seed


def read(domain: "Domain", chain: str) -> bool:
    """Whether it is an antibody to the domain; a few of the table have lost too much of theirs."""
    try:
        domain.check(chain)
    except InputError:
        return False
    return True

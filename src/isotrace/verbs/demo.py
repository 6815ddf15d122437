"""Real drugs through the bundled model, as pages to look at."""

from pathlib import Path

from isotrace.verbs.request import Answer, Progress, Seeded, verb

DRUGS = (
    # name, SMILES, atom to mask (in writing order)
    ("aspirin", "CC(=O)Oc1ccccc1C(=O)O", 3),
    ("caffeine", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", 6),
    ("diazepam", "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21", 16),
    ("dopamine", "NCCc1ccc(O)c(O)c1", 0),
    ("penicillin G", "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O", 3),
    ("morphine", "CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5", 1),
)
HOME = """<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=summary/report.html">
<title>isotrace demo</title><a href="summary/report.html">isotrace demo</a>
"""


class DemoRequest(Seeded):
    out: Path = Path("demo")
    """Folder for the pages."""


@verb(DemoRequest)
def demo(request: DemoRequest, progress: Progress) -> Answer:
    """Trace six drugs for the blood-brain-barrier probe and one masked atom each; write an index page."""
    from isotrace.base.files import locked, write_whole
    from isotrace.base.progress import slug
    from isotrace.base.runs import SUMMARY, open_run
    from isotrace.datasets.inputs import rejects_frame
    from isotrace.domains.molecule import token_map
    from isotrace.report.trace.index import Traces
    from isotrace.verbs.trace import TraceRequest, traced
    from isotrace.verbs.tracing import Tracer

    tracer = Tracer("bundled:molm", "bundled:molm-clt")
    jobs = []
    for index, (name, smiles, atom) in enumerate(DRUGS):
        batch = tracer.subject.tokenize([smiles])
        units = token_map(smiles, tracer.subject.tokens(batch.ids[0]), batch.offsets[0])
        position = next(i for i, u in enumerate(units) if u.kind == "atom" and u.atoms == (atom,))
        jobs += [(index, name, smiles, target) for target in ("probe:bbb", f"mask:{position}")]
    arguments = {"command": request.command, "seed": request.seed, "inputs": {}, "overwrite": False}
    with locked(request.out), open_run(request.out / SUMMARY, **arguments) as run:
        found, folders = [], []
        for index, name, smiles, target in progress(jobs, "tracing"):
            folders.append(f"{slug(name)}/{slug(target)}")
            place = request.out / folders[-1]
            asked = TraceRequest(
                subject="bundled:molm",
                dictionary="bundled:molm-clt",
                data=smiles,
                target=target,
                seed=request.seed,
                out=place,
            )
            found.append((index, traced(asked, tracer, {"sequence": smiles, "name": name}, place, go_on=True)))
        title = "Why did the model say so? Six drugs, traced"
        result = Traces.of(title, tracer.about, found, folders, rejects_frame(()))
        result.write(run)
        write_whole(request.out / "index.html", HOME.encode())
    return Answer({"traces": result.summary["traces"], "index": str(request.out / "index.html")})

"""Real drugs through the bundled model, as pages to look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isotrace.verbs.request import Answer, Progress, Seeded, verb

if TYPE_CHECKING:
    from isotrace.verbs.tracing import Tracer

DRUGS = (
    # name, SMILES, atom to mask (in writing order)
    ("aspirin", "CC(=O)Oc1ccccc1C(=O)O", 3),
    ("caffeine", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", 6),
    ("diazepam", "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21", 16),
    ("dopamine", "NCCc1ccc(O)c(O)c1", 0),
    ("penicillin G", "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O", 3),
    ("morphine", "CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5", 1),
)
SUBJECT, DICTIONARY = "bundled:molm", "bundled:molm-clt"
PAIR = ("Clc1ccccc1CN1CCCC1=O", "OC(=O)c1ccccc1CN1CCCC1=O")  # a chlorine, or an acid, at one place
Rest = tuple[dict[str, Any], Sequence[tuple[str, str]], list[str]]
"""What the demo says beside its traces, links to pages (folder, words), and folders whose cards come first."""
TABLE = Path(__file__).parents[1] / "assets/examples/solubility.csv"


class DemoRequest(Seeded):
    out: Path = Path("demo")
    """Folder for the pages."""
    domain: Literal["molecule", "antibody"] = "molecule"
    """Drugs through the bundled model, or an antibody: that fetches a published model and trains a dictionary first."""


@verb(DemoRequest)
def demo(request: DemoRequest, progress: Progress) -> Answer:
    """Trace six drugs (lipophilicity, one masked atom), compare a pair, and take a table all the way."""
    if request.domain == "antibody":
        from isotrace.verbs.demo_antibody import antibodies

        return antibodies(request, progress)
    from isotrace.base.progress import slug
    from isotrace.domains.molecule import token_map
    from isotrace.verbs.tracing import Tracer

    made = {"subject": SUBJECT, "dictionary": DICTIONARY}
    tracer = Tracer(SUBJECT, DICTIONARY)
    jobs = []
    for index, (name, smiles, atom) in enumerate(DRUGS):
        batch = tracer.subject.tokenize([smiles])
        units = token_map(smiles, tracer.subject.tokens(batch.ids[0]), batch.offsets[0])
        position = next(i for i, u in enumerate(units) if u.kind == "atom" and u.atoms == (atom,))
        for target in ("probe:logd", f"mask:{position}"):
            jobs.append(Job(index, name, smiles, target, f"{slug(name)}/{slug(target)}"))

    def rest() -> Rest:
        more = own_table(request, tracer, progress)
        links = (
            ("summary", "Six drugs: why this lipophilicity, and why this atom behind a mask?"),
            ("pair", f"Two molecules that differ in one place: {PAIR[0]} and {PAIR[1]}"),
            ("solubility", f"A table of 60 molecules: does the model know their solubility? {more['verdict']}"),
            ("substructures", "The same table: which substructures move the prediction"),
        )
        return more, links, ["pair"]

    return traced_pages(request, tracer, made, "Why did the model say so? Six drugs, traced", jobs, rest, progress)


@dataclass(frozen=True)
class Job:
    """A trace of the demo. `index`: traces of one have one card. `folder`: below that of the demo."""

    index: int
    name: str
    sequence: str
    target: str
    folder: str


def traced_pages(
    request: DemoRequest,
    tracer: "Tracer",
    made: Mapping[str, Any],
    title: str,
    jobs: Sequence[Job],
    rest: Callable[[], Rest],
    progress: Progress,
) -> Answer:
    """Every trace in a folder of its own, kept where it is done, a page of them all, and the page that leads to it and
    to what `rest` makes after them. `made`: what a command line says of the tracer."""
    from isotrace.base.files import locked, write_whole
    from isotrace.base.runs import SUMMARY, open_run
    from isotrace.datasets.inputs import rejects_frame
    from isotrace.report.trace.index import Traces
    from isotrace.verbs.trace import TraceRequest
    from isotrace.verbs.trace_rows import traced

    arguments: dict[str, Any] = {"command": request.command, "seed": request.seed, "inputs": {}, "overwrite": False}
    with locked(request.out), open_run(request.out / SUMMARY, **arguments, home="../index.html") as run:
        found = []
        for job in progress(jobs, "tracing"):
            place = request.out / job.folder
            asked = TraceRequest(**made, data=job.sequence, target=job.target, seed=request.seed, out=place)
            row = {"sequence": job.sequence, "name": job.name}
            up = "../" * len(Path(job.folder).parts) + f"{SUMMARY}/report.html"
            found.append((job.index, traced(asked, tracer, row, place, go_on=True, home=up)))
        folders = [job.folder for job in jobs]
        result = Traces.of(title, tracer.about, found, folders, rejects_frame(()))
        result.write(run)
        more, links, first = rest()
        write_whole(request.out / "index.html", home(links, [*first, *folders]).encode())
    return Answer({"traces": result.summary["traces"], **more, "index": str(request.out / "index.html")})


def own_table(request: DemoRequest, tracer: "Tracer", progress: Progress) -> dict[str, Any]:
    """A pair, and a user's table through probe and trace; each in a folder of its own, kept where it is done."""
    from isotrace.base.result import load
    from isotrace.base.runs import is_done
    from isotrace.verbs import probe, trace, trace_rows

    pair, solubility, screen = (request.out / name for name in ("pair", "solubility", "substructures"))
    always = {"seed": request.seed, "overwrite": True}
    both = {"subject": SUBJECT, "dictionary": DICTIONARY, **always}
    two = trace.TraceRequest(**both, data=PAIR[0], against=PAIR[1], target="probe:logd", out=pair)
    row, above = {"sequence": PAIR[0], "name": None}, "../index.html"
    compared = trace_rows.traced(two, tracer, row, pair, against=PAIR[1], go_on=True, home=above)
    asked = {"subject": SUBJECT, "data": TABLE, "label": "log S", "unit": "log mol/l", "out": solubility}
    one = probe.ProbeRequest(**asked, **always)
    if not is_done(solubility, **probe.run_of(one, tracer.subject)):
        probe.fit_probe(one, progress=progress)
    many = trace.TraceRequest(**both, data=TABLE, target=f"probe:{solubility}", quick=True, out=screen)
    if not is_done(screen, **trace_rows.run_of(many, tracer)):
        trace.trace(many, progress=progress)
    return {
        "pair": compared.to_dict(),
        "verdict": load(solubility).summary["verdict"],
        "substructures": load(screen).summary["substructures"],
    }


def home(links: Sequence[tuple[str, str]], folders: Sequence[str]) -> str:
    """The page that leads to all others: `links` (folder, what it says), and the cards in `folders`."""
    cards = "".join(f'<a href="{at}/report.html"><img src="{at}/card.png" alt="{at}"></a>' for at in folders)
    items = "".join(f'<li><a href="{place}/report.html">{escape(said)}</a></li>' for place, said in links)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>isotrace demo</title><style>body{font:18px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;"
        "padding:0 1rem}li{margin:.6rem 0}.cards{display:grid;gap:1rem;grid-template-columns:"
        "repeat(auto-fit,minmax(min(20rem,100%),1fr))}img{width:100%;border:1px solid #dfe4ea}</style>"
        '<meta property="og:title" content="isotrace demo">'
        f'<meta property="og:image" content="{folders[0]}/card.png">'
        f'<h1>isotrace demo</h1><ul>{items}</ul><div class="cards">{cards}</div></html>\n'
    )

"""isotrace demo: real drugs through the bundled model, as pages to look at."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from isotrace.base.progress import command_line, progress, slug

DRUGS = (
    # name, SMILES, atom to mask (in writing order)
    ("aspirin", "CC(=O)Oc1ccccc1C(=O)O", 3),
    ("caffeine", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", 6),
    ("diazepam", "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21", 16),
    ("dopamine", "NCCc1ccc(O)c(O)c1", 0),
    ("penicillin G", "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O", 3),
    ("morphine", "CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5", 1),
)


def command(
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("demo"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of controls, spellings and bootstraps.")] = 0,
) -> None:
    """Trace six drugs for the blood-brain-barrier probe and one masked atom each; write an index page."""
    from isotrace.attribution.trace import TraceConfig
    from isotrace.base.identity import Source
    from isotrace.base.runs import dumps, open_run
    from isotrace.domains.molecule import token_map
    from isotrace.report.trace.index import entry, index_page, page_row
    from isotrace.verbs.tracing import Tracer

    tracer = Tracer("bundled:molm", "bundled:molm-clt")
    jobs = []
    for name, smiles, atom in DRUGS:
        batch = tracer.subject.tokenize([smiles])
        units = token_map(smiles, tracer.subject.tokens(batch.ids[0]), batch.offsets[0])
        position = next(i for i, u in enumerate(units) if u.kind == "atom" and u.atoms == (atom,))
        jobs += [(name, smiles, "probe:bbb"), (name, smiles, f"mask:{position}")]
    entries: dict[str, dict[str, Any]] = {}
    results = []
    inputs = {"subject": Source.of("bundled:molm", tracer.subject)}
    inputs |= {"dictionary": Source.of("bundled:molm-clt", tracer.dictionary)}
    arguments = {"command": command_line(), "seed": seed, "inputs": inputs, "overwrite": False}
    for name, smiles, target in progress(jobs, "tracing"):
        folder = Path(slug(name)) / slug(target)
        with open_run(out / folder, **arguments) as run:
            result = tracer.trace(smiles, target, TraceConfig(seed=seed), name=name)
            result.write(run)
        results.append(result.to_dict())
        page = page_row(results[-1], f"../{folder}/report.html")
        entries.setdefault(name, entry(name, smiles, result._repr_html_()))["pages"].append(page)
    with open_run(out / "index", **arguments) as run:
        title = "Why did the model say so? Six drugs, traced"
        run.text("index.html", index_page(title, tracer, list(entries.values()), [], run.manifest["started"]))
        run.json("results", results)
    (out / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=index/index.html">'
        '<title>isotrace demo</title><a href="index/index.html">isotrace demo</a>\n'
    )
    if json:
        typer.echo(dumps({"traces": results, "index": str(out / "index.html")}))
    else:
        show(results)
        typer.echo(f"pages: {out / 'index.html'}")


def show(results: list[dict[str, Any]]) -> None:
    """A short table in the terminal: every number beside its control."""
    from rich.console import Console
    from rich.table import Table

    title = "isotrace demo: distance to the model's value, free-running, in the target's unit"
    table = Table(title=title, title_justify="left")
    columns = ("molecule", "target", "value", "features", "circuit", "all ablated", "random", "neurons", "top atoms")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for t in results:
        circuit, control = t["circuit"], t["circuit"]["control"]
        best = sorted(t["units"], key=lambda u: -u["score"])[:3]
        table.add_row(
            t["name"],
            t["target"]["name"],
            f"{t['target']['value']:.2f}",
            f"{circuit['n_features']} of {t['graph']['n_active_features']}",
            f"{circuit['error']:.2f}" + ("" if circuit["reproduces"] else " no"),
            f"{abs(circuit['empty'] - circuit['full']):.2f}",
            f"{control['error_mean']:.2f}",
            f"{circuit['neurons']['error']:.2f}",
            " ".join(f"{u['symbol']}{u['index']}" for u in best),
        )
    console = Console(width=120)
    console.print(table)
    console.print('"no": no small circuit reproduces this prediction, see its page')
    for kind in ("probe", "mask"):
        console.print(medians([t for t in results if t["target"]["kind"] == kind]))


def medians(results: list[dict[str, Any]]) -> str:
    """What the README prints of one kind of target."""
    target, circuits = results[0]["target"], [t["circuit"] for t in results]

    def middle(of: Callable[[dict[str, Any]], float]) -> str:
        return f"{median(map(of, circuits)):.2f}"

    nearer = sum(c["error"] < c["neurons"]["error"] for c in circuits)
    share = median(c["fraction_of_features"] for c in circuits)
    neurons, empty = middle(lambda c: c["neurons"]["error"]), middle(lambda c: abs(c["empty"] - c["full"]))
    own, removed = middle(lambda c: c["error"]), middle(lambda c: abs(c["full"] - c["removed"]))
    chance = middle(lambda c: abs(c["full"] - c["control"]["removed_mean"]))
    return (
        f"{target['kind']} targets, medians of {len(results)} in {target['unit']}: distance to the model of the "
        f"circuit ({share:.1%} of the active features) {own}, of all features ablated {empty}, "
        f"of matched random circuits {middle(lambda c: c['control']['error_mean'])}, of as many neurons {neurons}; "
        f"change without the circuit {removed}, without random circuits {chance}. Reproduced: "
        f"{sum(c['reproduces'] for c in circuits)} of {len(results)}; nearer than neurons: {nearer}."
    )

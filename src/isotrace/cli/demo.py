"""isotrace demo: real drugs through the bundled model, as pages to look at."""

from collections.abc import Callable
from statistics import median
from typing import Any

import typer

from isotrace.cli.command import command_of, show_table
from isotrace.verbs.demo import DemoRequest, demo

COLUMNS = ("sequence", "target", "value", "features", "circuit", "all ablated", "random", "neurons", "top elements")


def show(summary: dict[str, Any], request: DemoRequest) -> None:
    """A short table in the terminal: every number beside its control."""
    results = summary["traces"]
    title = "isotrace demo: distance to the model's value, free-running, in the target's unit"
    rows = []
    for t in results:
        circuit, control = t["circuit"], t["circuit"]["control"]
        best = sorted(t["units"], key=lambda u: -abs(u[t["picture"]["shown"]] or 0.0))[:3]
        rows.append(
            (
                t["name"],
                t["target"]["name"],
                f"{t['target']['value']:.2f}",
                f"{circuit['n_features']} of {t['graph']['n_active_features']}",
                f"{circuit['error']:.2f}" + ("" if circuit["reproduces"] else " no"),
                f"{abs(circuit['empty'] - circuit['full']):.2f}",
                f"{control['error_mean']:.2f}",
                f"{circuit['neurons']['error']:.2f}",
                " ".join(u["name"] for u in best),
            )
        )
    show_table(title, COLUMNS, rows, width=120, right=())
    typer.echo('"no": no small circuit reproduces this prediction, see its page')
    for kind in ("probe", "mask"):
        if found := [t for t in results if t["target"]["kind"] == kind]:
            typer.echo(medians(found))
    typer.echo(f"pages: {summary['index']}")


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


command = command_of(demo, show)

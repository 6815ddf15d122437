"""A pair as people meet it: a JSON summary, tables, two drawings, and one page that opens offline."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import polars as pl

from isotrace.base.runs import Run, to_jsonable
from isotrace.report.card.carded import Carded, shared, tsv
from isotrace.report.card.pair import pair_card, said
from isotrace.report.page import colour, number, percent, render_page, signed, template_text

SHOWN = 40
"""Features of the circuit on the page; all are in the table."""


@dataclass(frozen=True, eq=False, repr=False)
class PairResult(Carded):
    """What `isotrace.trace(…, against=…)` found. `view`: `drawings` (SVG of either), `scale` (the effect at full
    colour), `settings`."""

    kind: ClassVar[str] = "pair"

    def to_frame(self) -> pl.DataFrame:
        """Nodes of the circuit of the difference, one row each, largest estimate first."""
        return self.tables["features"]

    def told(self) -> Iterable[str]:
        return described(self.summary)

    @property
    def legend(self) -> str:
        element, unit = self.summary["alignment"]["element"], self.summary["target"]["unit"]
        return (
            f"Orange: with its own features on this {element} the value is higher than with those of the other one; "
            f"blue: lower. Full colour is {number(self.view['scale'])} {unit}, measured one token at a time. Dashed or "
            "framed: outside the common part."
        )

    def card_svg(self) -> str:
        return pair_card(to_jsonable(self.summary), self.view["drawings"], self.view["scale"])

    def _repr_html_(self) -> str:
        """Both drawings, and what was found."""
        drawn = "".join(f"<td>{svg}</td>" for svg in self.view["drawings"])
        said = "".join(f"<p>{escape(line)}</p>" for line in (self.legend, *described(self.summary)))
        return f"<div><table><tr>{drawn}</tr></table>{said}</div>"

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        summary, run = to_jsonable(self.summary), dict(manifest or {})
        strip = [*summary["tokens"], *summary["unpaired"]]
        scale = max((abs(t[name] or 0.0) for t in strip for name in ("effect", "effect_against")), default=0.0)
        for token in strip:
            for name in ("effect", "effect_against"):
                token[f"{name}_colour"] = colour(token[name] or 0.0, scale, diverging=True)
        title, sentence = summary["name"] or f"{summary['input']} against {summary['against']}", said(summary)
        copies = {
            "first": summary["input"],
            "second": summary["against"],
            "sentence": sentence,
            "command": run.get("command", ""),
            "tokens (TSV)": tsv(self.tables["tokens"]),
            "circuit features (TSV)": tsv(self.tables["features"]),
        }
        page = {
            **summary,
            **to_jsonable(self.view),
            "strip": strip,
            "title": title,
            **shared(run, f"{title}: {summary['target']['description']}", sentence, copies),
            "sentences": [*sentences(summary)],
            "legend": self.legend,
            "shown": summary["features"][:SHOWN],
            "command": run.get("command", "isotrace.trace"),
            "created": run.get("started", ""),
            "manifest": self.view["settings"] | run.get("versions", {}),
        }
        return render_page("pair.html.j2", page, script=template_text("copy.js"), data=None)

    def write(self, run: Run) -> None:
        """Also either drawing."""
        super().write(run)
        for name, svg in zip(("input", "against"), self.view["drawings"], strict=True):
            run.text(f"{name}.svg", svg)


def sentences(summary: Mapping[str, Any]) -> Iterable[str]:
    """What a reader should take away, in the target's unit, each number beside its control."""
    target, circuit, unit = summary["target"], summary["circuit"], summary["target"]["unit"]
    control, neurons, every = circuit["control"], circuit["neurons"], circuit["every"]
    way = "higher" if target["difference"] > 0 else "lower"
    yield (
        f"{target['description']}: {number(target['value'])} and {number(target['against'])} {unit}. The first is "
        f"{number(abs(target['difference']))} {way}."
    )
    nodes = f"{number(circuit['n_features'])} of the {number(every['n'])} feature nodes that differ"
    makes = f"the first {number(circuit['value'])}, {number(circuit['error'])} from the second"
    if circuit["carries"]:
        yield f"Swapped in from the second, {nodes} make {makes}."
    else:
        yield f"No small swap carries the difference: {circuit['reason']}. The one shown, {nodes}, makes {makes}."
    alike = neurons["chosen"]
    beside = f", {number(alike['n'])} neurons chosen alike {number(alike['error'])}" if alike is not None else ""
    yield (
        f"{control['n']} matched random swaps are {number(control['error_mean'])} from it{beside}, all nodes together "
        f"{number(every['error'])}, none {number(circuit['nothing']['error'])}."
    )
    element = summary["alignment"]["element"]
    for side, which in (("input", "first"), ("against", "second")):
        changed, common = summary["lanes"][side][:2]
        if changed["n_nodes"]:
            part = "" if changed["share"] is None else f" ({percent(changed['share'])} of the difference)"
            yield (
                f"On the changed {element}s of the {which} its own features make it {signed(changed['moved'])}{part}, "
                f"as many matched nodes elsewhere {signed(changed['control_mean'])}; on the common ones "
                f"{signed(common['moved'])}."
            )


def described(summary: Mapping[str, Any]) -> Iterable[str]:
    """A pair in a few lines of plain text."""
    yield f"{summary['input']}  against  {summary['against']}"
    yield from sentences(to_jsonable(summary))
    for warning in summary["warnings"]:
        yield f"warning: {warning}"

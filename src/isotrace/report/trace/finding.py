"""What a trace found, in a plain sentence: the prediction, its reference, the groups that move it, the proof."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isotrace.report.page import number, percent, signed

NAMED = 3
"""Groups named in either direction."""


@dataclass(frozen=True)
class Finding:
    """Parts of the sentence, each one a clause without a full stop. `overturned`: what takes the finding back, empty
    where nothing does. `raises`, `lowers`: rows of `group_rows` that move the target by more than their spread over
    spellings when they are hidden, largest first."""

    prediction: str
    reference: str
    groups: str
    circuit: str
    overturned: tuple[str, ...]
    raises: tuple[Mapping[str, Any], ...]
    lowers: tuple[Mapping[str, Any], ...]
    shown: str

    @property
    def sentence(self) -> str:
        return f"{self.prediction}, {self.reference}: {self.groups}; {self.circuit}."

    @property
    def colours(self) -> str:
        """The groups named whose colours, summed, have the other sign; empty where there are none, and where colours
        are measured too."""
        if self.shown == "hidden":
            return ""
        names = [g["name"] for g in (*self.raises, *self.lowers) if g["hidden"] * g["picture"] < 0]
        told = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        return f"The colours, which are linearised, say the opposite of {told}." if names else ""

    @property
    def taken_back(self) -> str:
        """The sentence that has to follow, empty where nothing is overturned."""
        return f"But {'; and '.join(self.overturned)}." if self.overturned else ""


def finding(summary: Mapping[str, Any]) -> Finding:
    """`summary`: what `isotrace trace --json` prints. Every number is one of its own."""
    target, circuit, seen, unit = summary["target"], summary["circuit"], summary["picture"], summary["target"]["unit"]
    over = "" if seen["sd"] is None else (
        f" ({number(seen['mean'])} ± {number(seen['sd'])} over {seen['spellings']} spellings)"
    )  # fmt: skip
    moving = [g for g in summary["groups"] if g["beyond"]]
    raises = tuple(g for g in moving if g["hidden"] > 0)[:NAMED]
    lowers = tuple(g for g in moving if g["hidden"] < 0)[:NAMED]
    return Finding(
        prediction=f"{target['name']} reads {number(target['value'])} {unit}{over}",
        reference=f"against {number(circuit['empty'])} with every feature {_ablated(circuit)}",
        groups=_groups(raises, lowers, summary),
        circuit=_circuit(circuit),
        overturned=tuple(_overturned(summary)),
        raises=raises,
        lowers=lowers,
        shown=seen["shown"],
    )


def _ablated(circuit: Mapping[str, Any]) -> str:
    return "ablated" if circuit["ablation"] == "zero" else "at its mean"


Rows = Sequence[Mapping[str, Any]]


def _groups(raises: Rows, lowers: Rows, summary: Mapping[str, Any]) -> str:
    unit, measured = summary["target"]["unit"], [g for g in summary["groups"] if g["hidden"] is not None]
    if not measured:
        reason = summary["picture"]["hidden_reason"] or f"the beginning of a {summary['domain']} has none"
        return f"which groups move it is not measured ({reason})"
    parts = [_moving(found, verb) for found, verb in ((raises, "raise"), (lowers, "lower")) if found]
    if not parts:
        return "hiding any one of its groups moves it by no more than that varies over spellings"
    several = summary["element"] != "atom" or any(g["sd"] is not None for g in measured)
    alone = "" if several else " in this spelling alone"
    return f"{' and '.join(parts)} ({unit}, measured by hiding each{alone})"


def _moving(found: Rows, verb: str) -> str:
    names = ", ".join(f"{group['name']} ({told(group)})" for group in found)
    return f"{names} {verb}{'s' if len(found) == 1 else ''} it"


def told(group: Mapping[str, Any]) -> str:
    """`+0.52 ± 0.1`: the effect of a group with its spread over spellings."""
    return signed(group["hidden"]) + ("" if group["sd"] is None else f" ± {number(group['sd'])}")


def _circuit(circuit: Mapping[str, Any]) -> str:
    nodes = f"{number(circuit['n_features'])} features ({percent(circuit['fraction_of_features'])} of the active ones)"
    control = circuit["control"]
    beside = f"{number(circuit['error'])} away, matched random circuits {number(control['error_mean'])}"
    if circuit["neurons"]["error"] is not None:
        beside += f", as many neurons {number(circuit['neurons']['error'])}"
    if circuit["reproduces"]:
        return f"a circuit of {nodes} reproduces it, {beside}"
    return f"no small circuit reproduces it, the best one tried, {nodes}, is {beside}"


def _overturned(summary: Mapping[str, Any]) -> list[str]:
    target, circuit, seen = summary["target"], summary["circuit"], summary["picture"]
    found, moved = [], abs(circuit["full"] - circuit["empty"])
    if seen["unsettled"]:
        found.append(
            f"its spellings differ by more ({number(seen['sd'])}) than all features together move it "
            f"({number(moved)}), so the circuit explains this spelling, not the {summary['domain']}"
        )
    if target["knows"] is False:
        found.append(target["verdict"][:1].lower() + target["verdict"][1:].rstrip("."))
    return found

"""The page and the picture of `isotrace evaluate`: fidelity against sparsity, controls beside it.

The picture is SVG text in which every point is labelled where it stands, legible from 400 pixels of width on.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Any

import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.evaluation.comparison import Comparison
from isotrace.report.figures import COLOURS, GREY, GRID, INK, log_ticks, path, picture, scale, text, ticks
from isotrace.report.page import interval, number, render_page

WIDTH, HEIGHT = 480, 400
LEFT, RIGHT, TOP, BOTTOM = 54, 466, 34, 352
FONT, EM = 14, 0.56  # pixels; mean width of a character of the sans-serif fonts used
Box = tuple[float, float, float, float]
ASKED = {"causal": ("next tokens predicted", "next-token"),
         "translating": ("next tokens predicted", "next-token"), "classes": ("times its own class", "class"),
         "reconstruction": ("tokens decoded from the latent", "reconstruction")}  # fmt: skip
"""Objective → what is asked where nothing is masked, and whose loss that is."""
ROLES = {
    "random": "random directions of the same input, as many as the dictionary has up to 4,096, with a fitted readout",
    "pca": "± principal components of the output; it reads the very output that it reconstructs",
    "neurons": "the subject's own MLP neurons, those that write most kept",
    "shuffled": "the dictionary with its decoder rows permuted among the features of a layer",
}


@dataclass(frozen=True)
class Point:
    """`y` with its interval `ci` is drawn filled, `y_hollow` hollow at the same x. Values that are not finite are
    left out."""

    label: str
    x: float
    y: float
    ci: tuple[float, float]
    y_hollow: float
    control: bool


class Evaluation(Result):
    """Fidelity of dictionaries and controls: `summary` as docs/evaluate.md lists it; tables `fidelity` (one row per
    dictionary and control) and `rejects`."""

    kind = "evaluation"

    @classmethod
    def of(cls, comparison: Comparison, rejects: pl.DataFrame) -> "Evaluation":
        """rejects: `index`, `input`, `reason`."""
        summary = to_jsonable(comparison.to_dict() | {"rejects": rejects.to_dicts()})
        return cls(summary, tables={"fidelity": comparison.to_frame(), "rejects": rejects})

    def to_frame(self) -> pl.DataFrame:
        return self.tables["fidelity"]

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        names = short_names([entry["name"] for entry in self.summary["dictionaries"]])
        entries = [
            entry | {"short": names[entry["name"]], "role": None, "reason": None}
            for entry in self.summary["dictionaries"]
        ]
        entries += [
            entry | {"short": entry["name"], "role": ROLES[entry["name"]]} for entry in self.summary["controls"]
        ]
        objective = self.summary.get("objective")  # runs of before name none, and were of masked tokens
        asked, loss = ASKED.get(objective or "", ("masked tokens predicted", "masked-token"))
        page = self.summary | {
            "asked": asked,
            "loss": loss,
            "asked_of": self.summary["n_predicted"] if objective in ASKED else self.summary["n_masked"],
            "masks": objective not in ASKED,
            "title": "How faithful the dictionaries are" if len(names) > 1 else "How faithful the dictionary is",
            "entries": entries,
            "picture": pareto_svg(self.summary),
            "created": (manifest or {}).get("started", ""),
            "command": (manifest or {}).get("command", ""),
        }
        return render_page("evaluation.html.j2", page, script="", data=None)

    def write(self, run: Run) -> None:
        super().write(run)
        run.text("pareto.svg", pareto_svg(self.summary))

    def told(self) -> Iterable[str]:
        for one in (*self.summary["dictionaries"], *self.summary["controls"]):
            if one.get("reason") is None:
                free = one["free_running"]
                yield (
                    f"{one['name']}: loss recovered {number(free['loss_recovered'])} {interval(free['ci'])}, "
                    f"L0 {number(one['l0'])}"
                )

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in (*self.told(), *self.summary["warnings"]))
        return f"<div>{pareto_svg(self.summary)}{lines}</div>"


def pareto_svg(summary: Mapping[str, Any]) -> str:
    """Free-running loss recovered over L0 with 95 % intervals, teacher-forced hollow, controls grey."""
    names = short_names([entry["name"] for entry in summary["dictionaries"]])
    points = [_point(entry, names[entry["name"]], control=False) for entry in summary["dictionaries"]]
    points += [_point(entry, entry["name"], control=True) for entry in summary["controls"] if not entry["reason"]]
    return scatter(points, x="active features per token and layer (L0)", y="loss recovered")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Name → the shortest end of its path that no other name shares."""
    short = {}
    for name in names:
        parts = PurePath(name).parts or (name,)
        ends = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [other for other in names if other != name]
        alone = (end for end in ends if not any(other == end or other.endswith(f"/{end}") for other in others))
        short[name] = next(alone, name)
    return short


def _point(entry: Mapping[str, Any], label: str, *, control: bool) -> Point:
    free, forced = entry["free_running"], entry["teacher_forced"]
    numbers = [entry["l0"], free["loss_recovered"], *free["ci"], forced["loss_recovered"]]
    l0, recovered, low, high, hollow = (math.nan if number is None else number for number in numbers)
    return Point(label, l0, recovered, (low, high), hollow, control)


def scatter(points: Sequence[Point], *, x: str, y: str) -> str:
    """SVG text. The x axis is logarithmic where x spans more than tenfold; controls, which share an x, stand side by
    side to the right of it. The y axis holds all that is no control; a control far below is an arrow at the lower
    edge, its value beside its name."""
    shown = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y) and point.x > 0]
    title, parts = f"{y} over {x}", []
    if not shown:
        return picture(
            WIDTH, HEIGHT, title, [text(WIDTH / 2, HEIGHT / 2, "no finite value to plot", "middle")], "scatter"
        )
    xs = [point.x for point in shown]
    log = max(xs) > 10 * min(xs)
    low_x, high_x = _x_range(xs, log)
    low, high = _y_range(shown)
    across = scale(low_x, high_x, LEFT, RIGHT, math.log10 if log else float)
    down = scale(low, high, BOTTOM, TOP)
    for value in ticks(low, high, 5):
        parts.append(path([(LEFT, down(value)), (RIGHT, down(value))], GRID))
        parts.append(text(LEFT - 8, down(value) + 5, f"{value:.3f}".rstrip("0").rstrip("."), "end"))
    for value in log_ticks(low_x, high_x) if log else ticks(low_x, high_x, 5):
        parts.append(path([(across(value), BOTTOM), (across(value), BOTTOM + 5)], INK))
        parts.append(text(across(value), BOTTOM + 20, f"{value:g}", "middle"))
    parts.append(path([(LEFT, BOTTOM), (RIGHT, BOTTOM)], INK))
    parts.append(text((LEFT + RIGHT) / 2, HEIGHT - 10, x, "middle"))
    parts.append(text(8, 18, f"{y}: ● free-running, 95 % CI   ○ teacher-forced", "start"))
    labels: list[tuple[Point, float, float]] = []
    taken: list[Box] = []
    trained, controls = ([point for point in shown if point.control == kind] for kind in (False, True))
    for point in shown:
        place = across(point.x) + (16 * (1 + controls.index(point)) if point.control else 0)
        colour = GREY if point.control else COLOURS[trained.index(point) % len(COLOURS)]
        shape = 0 if point.control else trained.index(point) % 4
        if point.y < low:
            parts.append(f'<path d="M{place - 6:.1f} {BOTTOM - 12}h12l-6 10z" fill="{colour}"/>')
            labels.append((point, place, BOTTOM - 7))
            taken.append((place - 7, BOTTOM - 13, place + 7, BOTTOM))
            continue
        if all(math.isfinite(end) for end in point.ci):
            bottom, top = (down(max(end, low)) for end in point.ci)
            bar = f"M{place:.1f} {bottom:.1f}V{top:.1f}M{place - 4:.1f} {top:.1f}h8"
            if point.ci[0] >= low:  # a bar that leaves the picture has no end in it
                bar += f"M{place - 4:.1f} {bottom:.1f}h8"
            parts.append(f'<path d="{bar}" stroke="{colour}" stroke-width="1.5"/>')
            taken.append((place - 5, top, place + 5, bottom))
        if math.isfinite(point.y_hollow) and point.y_hollow >= low:
            ring = _marker(place, down(point.y_hollow), 7.5, shape)
            parts.append(f'<path d="{ring}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            taken.append((place - 8, down(point.y_hollow) - 8, place + 8, down(point.y_hollow) + 8))
        parts.append(f'<path d="{_marker(place, down(point.y), 4.5, shape)}" fill="{colour}"/>')
        labels.append((point, place, down(point.y)))
        taken.append((place - 6, down(point.y) - 6, place + 6, down(point.y) + 6))
    ranked = [*(one for one in labels if not one[0].control), *(one for one in labels[::-1] if one[0].control)]
    for point, place, height in ranked:
        words = f"{point.label} {point.y:.2f}".replace("-", "−") if point.y < low else point.label
        parts += _label(words, place, height, taken, GREY if point.control else INK)
    return picture(WIDTH, HEIGHT, title, parts, "scatter")


def _x_range(xs: Sequence[float], log: bool) -> tuple[float, float]:
    if log:
        return min(xs) / 1.5, max(xs) * 1.5
    span = max(max(xs) - min(xs), 0.5 * max(xs))
    return max(0.0, min(xs) - 0.4 * span), max(xs) + 0.4 * span


def _y_range(points: Sequence[Point]) -> tuple[float, float]:
    trained = [point for point in points if not point.control] or list(points)
    values = [v for p in trained for v in (p.y, p.y_hollow, *p.ci) if math.isfinite(v)]
    high = max(v for v in (1.0, *values, *(p.y for p in points)) if math.isfinite(v))
    reach = high - max(3 * (high - min(values)), 0.12)
    low = min(v for v in (*values, *(p.y for p in points)) if math.isfinite(v) and v >= reach)
    span = max(high - low, 0.04)
    return low - 0.2 * span, high + 0.15 * span


def _marker(x: float, y: float, r: float, shape: int) -> str:
    """Path of a circle, square, diamond or triangle of about the same area."""
    if shape == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        1: [(-0.89, -0.89), (0.89, -0.89), (0.89, 0.89), (-0.89, 0.89)],
        2: [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        3: [(0, -1.3), (1.25, 0.9), (-1.25, 0.9)],
    }[shape]
    return "M" + "L".join(f"{x + r * a:.1f} {y + r * b:.1f}" for a, b in corners) + "z"


def _label(words: str, x: float, y: float, taken: list[Box], colour: str) -> list[str]:
    """The label beside its point, moved up or down with a leader line until it covers nothing."""
    words = words if len(words) <= 30 else f"{words[:29]}…"
    width = EM * FONT * len(words)
    places = [(side, shift) for shift in (0, -16, 16, -32, 32, -48, 48, -64, 64, 80, -80) for side in (1, -1)]
    for side, shift in places:
        start = x + 13 if side > 0 else x - 13 - width
        box = (start, y + shift - 9, start + width, y + shift + 7)
        inside = box[0] >= LEFT - 2 and box[2] <= WIDTH - 2 and box[1] >= TOP - 8 and box[3] <= BOTTOM - 1
        if inside and not any(_overlap(box, other) for other in taken):
            break
    else:
        side, shift, box = 1, 0, (x + 13, y - 9, x + 13 + width, y + 7)
    taken.append(box)
    end = x + 11 * side
    parts = [path([(x + 6 * side, y), (end, y + shift)], GREY)] if shift else []
    return [*parts, text(x + 13 * side, y + shift + 5, words, "start" if side > 0 else "end", colour)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

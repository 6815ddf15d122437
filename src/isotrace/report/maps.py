"""Tracing maps as people meet them: heat maps of position classes × layers, a table, and what injection gains."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.attribution.maps.injection import Injection
from isotrace.attribution.maps.many import Maps
from isotrace.attribution.maps.pair import ANSWER, CAUSE, EVERY, NULL, MapSettings, Pair
from isotrace.attribution.maps.recovery import COMPONENTS, WINDOWS
from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.report.card.carded import shared
from isotrace.report.figures import GREY, INK, picture, text
from isotrace.report.page import colour, interval, number, render_page, template_text

SAID = {"attention": "output of attention", "mlp": "output of the MLP", "residual": "residual stream behind the layer"}
_ROW, _HEAD, _WIDE, _NARROW, _NUMBERED = 22, 44, 38, 12, 12
"""Pixels of a row, of what stands above, of a cell with its number and of one without; most layers with numbers."""


class MapResult(Result):
    """`summary` as docs/map.md lists it; tables `map` (a row per component, window, class and layer), `pairs` and
    `rejects`."""

    kind = "map"

    def to_frame(self) -> pl.DataFrame:
        """Recovery of every component, window, class and layer."""
        return self.tables["map"]

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        yield from injected(self.summary["injection"])

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        summary, run = self.summary, dict(manifest or {})
        title = f"Tracing map: {summary['target']}"
        copies = {"verdict": summary["verdict"], "command": run.get("command", "")}
        page = summary | {
            "title": title,
            **shared(run, title, summary["verdict"], copies),
            "maps": pictures(summary),
            "rows": [row for row in summary["map"] if row["window"] == 1],
            "pairs": self.tables["pairs"].head(12).to_dicts(),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }
        return render_page("map.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.told())
        return f"<div>{''.join(pictures(self.summary)[0]['drawn'])}{lines}</div>"


def injected(found: Mapping[str, Any]) -> Iterable[str]:
    """What injection gained, a line for every input it went into, or why there is none."""
    if found["reason"] is not None:
        yield f"no injection: {found['reason']}"
    for name, gain in found["gains"].items():
        own, random = gain["own"]["accuracy"], gain["random"]["accuracy"]
        told = f"λ {number(found['strengths'][name])}: accuracy {number(gain['before']['accuracy'])}"
        yield (
            f"injected into the {name} input from layer {found['layer']}, {told}, gain {number(own[0])} "
            f"{interval(own[1:])}, random directions {number(random[0])} {interval(random[1:])}, over "
            f"{found['n_held']} held-out pairs"
        )


def pictures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every window: its title, and SVG of every component."""
    return [
        {
            "title": "one layer patched" if width == 1 else f"windows of {width} layers",
            "drawn": [
                heat_map([r for r in found["map"] if (r["component"], r["window"]) == (name, width)], SAID[name])
                for name in COMPONENTS
            ],
        }
        for width in WINDOWS
    ]


def heat_map(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """SVG: a row per class, a column per layer; orange is recovered, blue moved the other way, full colour at ±1."""
    classes, layers = [*dict.fromkeys(row["class"] for row in rows)], 1 + max(row["layer"] for row in rows)
    cell = _WIDE if layers <= _NUMBERED else _NARROW
    left = 12 + 7 * max(map(len, classes))
    parts = [text(left, 16, title, "start", INK, 13)]
    parts += [
        text(left + cell * (layer + 0.5), _HEAD - 7, str(layer), "middle", GREY, 11)
        for layer in range(0, layers, 1 if cell == _WIDE else 5)
    ]
    for i, name in enumerate(classes):
        parts.append(text(left - 7, _HEAD + _ROW * i + 15, name, "end", INK, 12))
    for row in rows:
        x, y, value = left + cell * row["layer"], _HEAD + _ROW * classes.index(row["class"]), row["recovery"]
        bounds = f" {interval([row['low'], row['high']])}" if row["low"] is not None else ""
        told = f"{row['class']}, layer {row['layer']}: {number(value)}{bounds}, {row['pairs']} pairs"
        shade = colour(max(-1.0, min(1.0, value or 0.0)), 1.0, diverging=True)
        box = f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{_ROW - 1}" fill="{shade}">'
        parts.append(f"{box}<title>{escape(told)}</title></rect>")
        if cell == _WIDE and value is not None:
            parts.append(text(x + cell / 2, y + 15, cell_text(value), "middle", INK, 11))
    width, height = left + max(cell * layers + 6, 7 * len(title)), _HEAD + _ROW * len(classes) + 6
    return picture(width, height, f"{title}: classes of positions × layers", parts, "map", fixed=True)


def cell_text(value: float | None) -> str:
    """To two decimals, without a sign before nothing."""
    return "–" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def map_rows(maps: Maps) -> list[dict[str, Any]]:
    """`recovery` with its interval; `beyond`: by how much more than a random span as long as the cause, paired."""
    values = maps.values
    there = NULL in maps.classes
    null = values[:, :, :, [maps.classes.index(NULL)]] if there else np.full_like(values[:, :, :, :1], np.nan)
    means, above = maps.means(values), maps.means(values - null)
    bounds, above_bounds, counts = maps.bounds(means), maps.bounds(above), np.isfinite(values).sum(0)
    rows = []
    for place in np.ndindex(*values.shape[1:]):
        component, width, name, layer = place
        own = {"recovery": means[0], "low": bounds[0], "high": bounds[1]}
        own |= {"beyond": above[0], "beyond_low": above_bounds[0], "beyond_high": above_bounds[1]}
        told = {key: _known(of[place]) for key, of in own.items()}
        head = {"component": [*COMPONENTS][component], "window": WINDOWS[width], "class": maps.classes[name]}
        rows.append(head | {"layer": layer} | told | {"pairs": int(counts[place])})
    return rows


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def described(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Read off the rows of single layers: `peaks` of attention and MLP over the classes of tokens, and `handed_over`,
    the first layer behind which the residual stream at the answer recovers more than at the cause; None where there is
    none."""
    single = [row for row in rows if row["window"] == 1 and row["recovery"] is not None]
    peaks = []
    for name in ("attention", "mlp"):
        own = [row for row in single if row["component"] == name and row["class"] not in (EVERY, NULL)]
        keep = ("component", "class", "layer", "recovery", "low", "high")
        peaks.append({key: max(own, key=lambda row: row["recovery"])[key] for key in keep} | {"of": len(own)})
    stream = {(row["class"], row["layer"]): row for row in single if row["component"] == "residual"}
    n = 1 + max(row["layer"] for row in single)
    both = [layer for layer in range(n) if (CAUSE, layer) in stream and (ANSWER, layer) in stream]
    later = (i for i in both if stream[ANSWER, i]["recovery"] > stream[CAUSE, i]["recovery"])
    return {"peaks": peaks, "handed_over": next(later, None)}


def verdict(found: Mapping[str, Any]) -> str:
    moved, elsewhere, layer = found["moved"], found["elsewhere"], found["handed_over"]
    unit = "" if found["measure"] == "probability" else f" {found['measure']}"
    both = f"{number(found['clean'])} clean, {number(found['corrupt'])} corrupt"
    said = f"Corrupting the cause moves the answer's {found['measure']} by {number(moved)}{unit} ({both})"
    said += "." if elsewhere is None else f", a span as long elsewhere by {number(elsewhere)}."
    if layer is not None:
        place = "residual", 1, ANSWER, layer
        here = next(r for r in found["map"] if (r["component"], r["window"], r["class"], r["layer"]) == place)
        bounds = "" if here["low"] is None else f" {interval([here['low'], here['high']])}"
        said += (
            f" The residual stream holds it at the answer rather than at the cause from layer {layer} on "
            f"({cell_text(here['recovery'])}{bounds} recovered there)."
        )
    tops = [f"at the {p['class']} in layer {p['layer']} ({cell_text(p['recovery'])})" for p in found["peaks"]]
    return f"{said} Of single layers attention {tops[0]} and the MLP {tops[1]} bring most of it back."


def summary_of(maps: Maps, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What is told of maps, wherever they stand. `pairs`: also those that were dropped."""
    moved = np.abs([pair.moved for pair in pairs])
    elsewhere = np.asarray([pair.elsewhere for pair in pairs])
    rows = map_rows(maps)
    own = [one.pair.classes for one in maps.ones]
    sizes = {name: [len(classes[name]) for classes in own if name in classes] for name in maps.classes}
    found = {
        "measure": maps.ones[0].pair.answer.measure,
        "clean": float(np.mean([pair.values[0] for pair in pairs])),
        "corrupt": float(np.mean([pair.values[1] for pair in pairs])),
        "moved": float(moved.mean()),
        "elsewhere": float(np.nanmean(elsewhere)) if np.isfinite(elsewhere).any() else None,
        "classes": [{"name": name, "pairs": len(n), "tokens": float(np.mean(n))} for name, n in sizes.items() if n],
        "map": rows,
        **described(rows),
    }
    return found | {"verdict": verdict(found)}


def traced_map(pair: Pair, maps: Maps | None, settings: MapSettings) -> dict[str, Any]:
    """The map of one traced prediction, as its page and JSON have it. `maps` is None where the corruption moves it by
    too little, and `reason` then says so, else it is None."""
    tokens = pair.subject.tokens(pair.clean.ids[0])
    about = {
        "corruption": settings.corruption,
        "cause": [{"position": p, "token": tokens[p]} for p in pair.cause],
        "reason": None,
    }
    if maps is None:
        said = f"no run of {settings.span} tokens moves the answer by {settings.least:g} when it is corrupted"
        both = dict(zip(("clean", "corrupt"), pair.values, strict=True))
        return about | both | {"reason": f"{said} (at most {abs(pair.moved):.2g})"}
    return about | summary_of(maps, [pair])


def map_result(
    maps: Maps,
    pairs: Sequence[Pair],
    tables: Mapping[str, pl.DataFrame],
    injection: Injection,
    about: Mapping[str, Any],
) -> MapResult:
    """`tables`: pairs and rejects. `about`: what was asked, see docs/map.md."""
    rejects, kept = tables["rejects"], len(maps.ones)
    n = {"sequences": len({*maps.sequences}), "pairs": len(pairs), "kept": kept, "dropped": len(pairs) - kept}
    found, warnings = summary_of(maps, pairs), []
    if n["sequences"] == 1:
        warnings.append("one sequence has no interval")
    elif n["sequences"] < 10:
        warnings.append(f"{n['sequences']} sequences only: intervals say little, and may be too narrow")
    if n["dropped"] > kept:
        warnings.append(f"{n['dropped']} of {n['pairs']} pairs are dropped: the map is of those that corruption moves")
    summary = {
        **about,
        "n": n,
        **found,
        "injection": asdict(injection),
        "warnings": warnings,
        "rejects": rejects.head(20).to_dicts(),
        "n_rejected": rejects.height,
    }
    frame = pl.DataFrame(found["map"], infer_schema_length=None)
    return MapResult(to_jsonable(summary), {}, {"map": frame, **tables})


def mapped(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a page shows of `traced_map`."""
    if found is None:
        return None
    return {**found, "maps": [] if found["reason"] is not None else pictures(found)}

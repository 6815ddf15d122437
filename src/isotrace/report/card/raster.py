"""An SVG of isotrace's own as PNG, so that a card is described once.

Drawn is what isotrace's drawings are made of: svg (also inside another), g, rect, circle, ellipse, line, path (M, L, H,
V, Q, C, Z, absolute) and text, with fill (even-odd), stroke, dashes and fonts given as attributes, inherited, or as
style. Any other element or command raises ValueError: a drawing that says more must not lose it silently.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from isotrace.report.card.words import EMBOLDEN, font, length

FINER = 3
"""Pixels drawn along a pixel kept: edges are smooth because nine are averaged."""
_TOKEN = re.compile(r"[A-Za-z]|-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")
_TAKES = {"M": 2, "L": 2, "H": 1, "V": 1, "Q": 4, "C": 6, "Z": 0}
_STEPS = np.linspace(0, 1, 9)[1:, None]
_STYLE = ("fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-weight", "text-anchor", "fill-rule")
_START = {"fill": "#000", "stroke": "none", "stroke-width": "1", "font-size": "16", "text-anchor": "start"}
Line = np.ndarray
"""Points `[n, 2]`."""


@dataclass(frozen=True)
class _Frame:
    """How a unit of the drawing lies on the canvas, and what is inherited."""

    scale: float
    x: float
    y: float
    style: Mapping[str, str]

    def at(self, points: np.ndarray) -> np.ndarray:
        return points * self.scale + (self.x, self.y)

    def inside(self, node: ElementTree.Element) -> "_Frame":
        """The frame of an svg in the drawing: its view box in the middle of its own box."""
        box = [float(v) for v in node.get("viewBox", f"0 0 {node.get('width')} {node.get('height')}").split()]
        width, height = (float(node.get(name, box[i])) for name, i in (("width", 2), ("height", 3)))
        own = min(width / box[2], height / box[3])
        x = float(node.get("x", 0)) + (width - own * box[2]) / 2 - own * box[0]
        y = float(node.get("y", 0)) + (height - own * box[3]) / 2 - own * box[1]
        return replace(self, scale=self.scale * own, x=self.x + self.scale * x, y=self.y + self.scale * y)

    def styled(self, node: ElementTree.Element) -> "_Frame":
        own = {name: value for name in _STYLE if (value := node.get(name)) is not None}
        for part in filter(None, node.get("style", "").split(";")):
            name, _, value = part.partition(":")
            own[name.strip()] = value.strip()
        return replace(self, style={**self.style, **own}) if own else self

    def colour(self, name: str) -> str | None:
        value = self.style[name]
        return None if value in ("none", "transparent") else value

    def size(self, name: str) -> float:
        return float(self.style[name].removesuffix("px")) * self.scale


def png(svg: str) -> bytes:
    """The SVG at its own size in pixels, on white. Raises ValueError for what cannot be drawn."""
    root = ElementTree.fromstring(svg)
    size = tuple(int(float(root.attrib[name])) for name in ("width", "height"))
    image = Image.new("RGB", (size[0] * FINER, size[1] * FINER), "#fff")
    _draw(image, root, _Frame(FINER, 0.0, 0.0, _START))
    out = io.BytesIO()
    image.reduce(FINER).save(out, "PNG", optimize=True)
    return out.getvalue()


def _draw(image: Image.Image, node: ElementTree.Element, frame: _Frame) -> None:
    kind, frame = node.tag.rpartition("}")[2], frame.styled(node)
    if kind in ("title", "desc"):
        return
    if kind in ("svg", "g"):
        frame = frame.inside(node) if kind == "svg" else frame
        for child in node:
            _draw(image, child, frame)
    elif kind == "text":
        _write(image, node, frame)
    elif kind in ("circle", "ellipse"):
        _ellipse(image, node, frame)
    elif kind in _OUTLINES:
        _outline(image, [frame.at(line) for line in _OUTLINES[kind](node)], frame)
    else:
        raise ValueError(f"an element {kind!r} cannot be drawn")


def _numbers(node: ElementTree.Element, *names: str) -> list[float]:
    return [float(node.get(name, 0)) for name in names]


def _rect(node: ElementTree.Element) -> list[Line]:
    x, y, width, height = _numbers(node, "x", "y", "width", "height")
    return [np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)])]


def _line(node: ElementTree.Element) -> list[Line]:
    return [np.array(_numbers(node, "x1", "y1", "x2", "y2")).reshape(2, 2)]


def _path(node: ElementTree.Element) -> list[Line]:
    """Curves become eight straight pieces."""
    lines: list[list[np.ndarray]] = []
    for command, values in _commands(node.get("d", "")):
        if command == "M":
            lines.append([np.array(values)])
            continue
        here = lines[-1][-1]
        if command == "Z":
            lines[-1].append(lines[-1][0])
        elif command == "H":
            lines[-1].append(np.array([values[0], here[1]]))
        elif command == "V":
            lines[-1].append(np.array([here[0], values[0]]))
        else:
            points = np.array(values).reshape(-1, 2)
            if command == "L":
                lines[-1].append(points[0])
            else:
                t = _STEPS
                curve = (1 - t) ** 2 * here + 2 * t * (1 - t) * points[0] + t**2 * points[1]
                if command == "C":
                    inner = 3 * t * (1 - t) ** 2 * points[0] + 3 * t**2 * (1 - t) * points[1]
                    curve = (1 - t) ** 3 * here + inner + t**3 * points[2]
                lines[-1].extend(curve)
    return [np.stack(line) for line in lines]


def _commands(d: str) -> Iterator[tuple[str, list[float]]]:
    """Numbers behind a command repeat it, behind M they go on as L."""
    tokens, command, at = _TOKEN.findall(d), "", 0
    while at < len(tokens):
        if tokens[at].isalpha():
            command, at = tokens[at], at + 1
        else:
            command = "L" if command == "M" else command
        if command not in _TAKES:
            raise ValueError(f"a path with {command!r} cannot be drawn")
        n = _TAKES[command]
        yield command, [float(v) for v in tokens[at : at + n]]
        at += n


_OUTLINES = {"rect": _rect, "line": _line, "path": _path}


def _outline(image: Image.Image, lines: Sequence[Line], frame: _Frame) -> None:
    if (fill := frame.colour("fill")) is not None:
        filled = [line for line in lines if len(line) > 2]
        if len(filled) == 1:
            ImageDraw.Draw(image).polygon([tuple(p) for p in filled[0]], fill=fill)
        elif filled:
            _even_odd(image, filled, fill)
    if (stroke := frame.colour("stroke")) is not None:
        for line in lines:
            _stroke(image, line, stroke, frame)


def _even_odd(image: Image.Image, lines: Sequence[Line], fill: str) -> None:
    """Letters have holes."""
    every = np.concatenate(lines)
    low, high = np.floor(every.min(0)).astype(int), np.ceil(every.max(0)).astype(int) + 1
    size = tuple((high - low).tolist())
    mask = Image.new("1", size)
    for line in lines:
        own = Image.new("1", size)
        ImageDraw.Draw(own).polygon([tuple(p) for p in line - low], fill=1)
        mask = ImageChops.logical_xor(mask, own)
    image.paste(fill, (int(low[0]), int(low[1])), mask)


def _stroke(image: Image.Image, line: Line, colour: str, frame: _Frame) -> None:
    # Pillow's own wide lines are thinner in one diagonal than in the other; its polygons include their edges.
    brush, half = ImageDraw.Draw(image), max(0.0, (frame.size("stroke-width") - 1) / 2)
    dashes = frame.style.get("stroke-dasharray", "none")
    whole = dashes == "none"
    for a, b in pairwise(line) if whole else _dashed(line, [float(v) * frame.scale for v in re.split("[ ,]+", dashes)]):
        size = hypot(*(b - a))
        if size > 0:
            aside = np.array([a[1] - b[1], b[0] - a[0]]) / size * half
            brush.polygon([tuple(p) for p in (a + aside, b + aside, b - aside, a - aside)], fill=colour)
    for x, y in line[1:-1] if whole else ():
        brush.ellipse((x - half, y - half, x + half, y + half), fill=colour)


def _dashed(line: Line, lengths: Sequence[float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    at, left = 0, lengths[0]
    for a, b in pairwise(line):
        total, done = hypot(*(b - a)), 0.0
        while done < total:
            step = min(left, total - done)
            if at % 2 == 0:
                yield a + (b - a) * done / total, a + (b - a) * (done + step) / total
            done, left = done + step, left - step
            if left <= 1e-9:
                at += 1
                left = lengths[at % len(lengths)]


def _ellipse(image: Image.Image, node: ElementTree.Element, frame: _Frame) -> None:
    cx, cy = frame.at(np.array(_numbers(node, "cx", "cy")))
    rx, ry = _numbers(node, *(("r", "r") if node.get("r") else ("rx", "ry")))
    turn = np.linspace(0, 2 * np.pi, 73)
    points = np.stack([cx + frame.scale * rx * np.cos(turn), cy + frame.scale * ry * np.sin(turn)], 1)
    _outline(image, [points], frame)


def _write(image: Image.Image, node: ElementTree.Element, frame: _Frame) -> None:
    """At its baseline, drawn as wide as `textLength` says where it does: `length` measured it in this font."""
    said, fill = "".join(node.itertext()), frame.colour("fill")
    if not said or fill is None:
        return
    bold = frame.style.get("font-weight", "400") not in ("400", "normal")
    x, y = _numbers(node, "x", "y")
    size = float(frame.style["font-size"].removesuffix("px"))
    if node.get("dominant-baseline") == "central":
        y += 0.35 * size
    x -= {"start": 0.0, "middle": 0.5, "end": 1.0}[frame.style["text-anchor"]] * length(said, size, bold)
    edge = round(EMBOLDEN * size * frame.scale) if bold else 0
    place = tuple(frame.at(np.array([x, y])).tolist())
    drawn = {"font": font(size * frame.scale), "fill": fill, "anchor": "ls", "stroke_width": edge, "stroke_fill": fill}
    ImageDraw.Draw(image).text(place, said, **drawn)

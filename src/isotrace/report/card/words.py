"""Words on a card: measured in the one font that the PNG is drawn in, broken and shortened until they fit.

The font is FreeSans as RDKit ships it; an SVG names it and its like, and says how long every text is, so that it takes
the same room whatever font a reader has.
"""

from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from io import BytesIO

from PIL import ImageFont

from isotrace.report.figures import INK

FONT = "FreeSans, Helvetica, Arial, sans-serif"
EMBOLDEN = 0.022
"""Width of the line around letters that makes them bold, in font sizes, on either side."""
_AT = 100  # the size at which text is measured


@cache
def _file() -> bytes:
    return (files("rdkit") / "Chem" / "Draw" / "FreeSans.ttf").read_bytes()


@cache
def font(size: float) -> ImageFont.FreeTypeFont:
    # The basic layout, so that widths do not depend on whether Raqm is installed.
    return ImageFont.truetype(BytesIO(_file()), size, layout_engine=ImageFont.Layout.BASIC)


def length(text: str, size: float, bold: bool = False) -> float:
    """Width of `text` in pixels."""
    return font(_AT).getlength(text) * size / _AT + (2 * EMBOLDEN * size if bold and text else 0.0)


def legible(text: str) -> bool:
    """Whether the font has every letter of it."""
    return all(letter.isspace() or _drawn(letter) != _drawn("\uffff") for letter in set(text))


@cache
def _drawn(letter: str) -> bytes:
    return bytes(font(_AT).getmask(letter))  # pyright: ignore[reportArgumentType]


def printable(text: str) -> str:
    """Without what XML has no place for: control characters, and bytes of a file name that are no text."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str, size: float, width: float, bold: bool = False) -> str:
    """`text`, or as much of its beginning as fits, with an ellipsis."""
    if length(text, size, bold) <= width:
        return text
    kept = len(text)
    while kept and length(f"{text[:kept].rstrip()}…", size, bold) > width:
        kept -= 1
    return f"{text[:kept].rstrip()}…"


def lines(text: str, size: float, width: float) -> list[str]:
    """Broken between words; a word wider than the line is shortened."""
    found: list[str] = []
    for word in text.split():
        if found and length(f"{found[-1]} {word}", size) <= width:
            found[-1] += f" {word}"
        else:
            found.append(shortened(word, size, width))
    return found


@dataclass(frozen=True)
class Block:
    """Lines of one size, and the height that they take."""

    lines: tuple[str, ...]
    size: float

    @property
    def height(self) -> float:
        return SPACING * self.size * len(self.lines)

    def svg(self, x: float, y: float, colour: str, bold: bool = False) -> str:
        """With the top of the first line at `y`."""
        rows = enumerate(self.lines)
        return "".join(word(x, y + (SPACING * i + 0.95) * self.size, row, self.size, colour, bold) for i, row in rows)


SPACING = 1.28


def heading(x: float, y: float, text: str, width: float, sizes: tuple[float, ...]) -> str:
    """One bold line, in the largest of `sizes` in which it fits; shortened in the smallest."""
    size = next((size for size in sizes if length(text, size, bold=True) <= width), sizes[-1])
    return word(x, y, shortened(text, size, width, bold=True), size, INK, bold=True)


def fitted(text: str, width: float, height: float, sizes: tuple[float, ...]) -> Block:
    """In the largest of `sizes`, largest first, in which the text fits; in the smallest cut off where it does not."""
    for size in sizes:
        block = Block(tuple(lines(text, size, width)), size)
        if block.height <= height:
            return block
    size = sizes[-1]
    rows = lines(text, size, width)[: max(1, int(height / (SPACING * size)))]
    return Block((*rows[:-1], shortened(f"{rows[-1]} …", size, width)), size)


def word(
    x: float, y: float, text: str, size: float, colour: str, bold: bool = False, anchor: str = "start"
) -> str:  # fmt: skip
    """One line of text with its baseline at `y`."""
    weight = ' font-weight="600"' if bold else ""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    text = printable(text)
    wide = length(text, size, bold)
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{weight}{at} textLength="{wide:.1f}" '
        f'lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
    )

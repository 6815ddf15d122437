"""What the generators of odd inputs share: a case says what was written, so that a test knows what must come of it."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

SMILES = [
    "C",
    "CCO",
    "c1ccccc1",
    "CC(=O)Oc1ccccc1C(=O)O",
    "[Na+].[Cl-]",
    "C/C=C/C",
    "[13CH4]",
    "N[C@@H](C)C(=O)O",
    "ClCCBr",
]
REACTIONS = [
    "CCO>>CC=O",
    "CCO.Cl>>CCCl.O",
    "C>>",
    ">>C",
    "C>O>N",
    "[CH3:1][OH:2]>>[CH3:1][Cl:2]",
    "CC(=O)O.CN>>CC(=O)NC",
]
PROTEINS = ["MKV", "EVQLVESGGGLVQPGGSLRLSCAAS", "MKVLAAGIVGLLLAQWERTY", "A", "XXBZ", "GGGGG", "MSDFGHKLPQ"]
MISSING = ["", " ", "NA", "nan", "#N/A", "null", "NULL", "None", "-", "?", ".", "N/A"]
# Text from every corner that has broken a reader: line ends, quotation marks, controls, other scripts, length.
ODD = [
    '"', "'", '""', '"a', 'a"', '"a"b', "a,b", "a;b", "a\tb", "a b", "a|b", "\\", "\\n", ">", ">>", "<a>", "$$$$",
    "#", "//", "=",
    "=1+1", "@", "%", "%10", "{", "}", "[", "]", "()", "((((", "C1CC", "c1cc", "[", "[C", "C#", "C=", "*", "~", "[U]",
    "[999C]", "C(C)(C)(C)(C)C",
    "[C@@@]", "C%1", "C%", "é", "größe", "日本", "😀", "\u00a0", "\u2028", "\u200b", "\ufeff", "\x0b", "\x0c", "\x1c",
    "\x85", "a\u0301",
    "1", "-1", "1e999", "1,5", ">10", "٣", "²", "①", "0x1", "1_0", "inf", "True", "A" * 3000, "C" * 3000, "(" * 300,
    "[" * 300,
    "C1" * 50, "V2000", "M  END", "ATOM", "None", "nan",
]  # fmt: skip


@dataclass
class Case:
    """`right`: row → (sequence, other cells) that must be read; `wrong`: rows that must be rejects; `n`: rows written,
    None where damage leaves that open."""

    name: str
    content: bytes
    n: int | None
    right: dict[int, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    wrong: set[int] = field(default_factory=set)

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.write_bytes(self.content)
        return path


def text(rng: Random, most: int = 4) -> str:
    return "".join(rng.choice(ODD) for _ in range(rng.randrange(1, most)))


def damaged(content: bytes, rng: Random) -> bytes:
    """Some bytes lost, doubled, changed or moved."""
    found = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(found) + 1)
        size = rng.choice([1, 1, 2, 7, 80, 400])
        match rng.randrange(5):
            case 0:
                del found[at : at + size]
            case 1:
                found[at:at] = found[at : at + size]
            case 2:
                found[at:at] = rng.choice(
                    [b"\0", b"\xff", b"\r", b"\n\n", b'"', b"\t", b">", b"$$$$\n", b"\xe2\x82", b"\x1a"]
                )
            case 3:
                found[at:at] = text(rng).encode()
            case 4:
                found = found[:at] if rng.random() < 0.3 else found[at:] + found[:at]
    return bytes(found)

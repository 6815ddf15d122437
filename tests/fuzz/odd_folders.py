"""Folders of subjects and dictionaries that something happened to; names, targets and seeds as people mistype them."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from odd import ODD, damaged, text

# No size that would fill the memory of whoever loads it.
VALUES = [
    None,
    True,
    "",
    "x",
    "0",
    -1,
    0,
    1,
    2,
    3,
    17,
    1.5,
    float("nan"),
    1e-12,
    [],
    [1, 2],
    {},
    {"a": 1},
    "float16",
    "[PAD]",
]
TOKENS = ["C", "c", "O", "(", "1", "<mask>", "<unk>", "Cl", "=", ":"]


def edited(data: Any, rng: Random) -> Any:
    """JSON with one value changed, lost, renamed or added, at any depth."""
    if isinstance(data, dict) and data and rng.random() < 0.9:
        found, key = dict(data), rng.choice([*data])
        match rng.randrange(5):
            case 0:
                del found[key]
            case 1:
                found[rng.choice(ODD[:40])] = rng.choice(VALUES)
            case 2:
                found[f"{key}_"] = found.pop(key)
            case _:
                found[key] = edited(found[key], rng)
        return found
    if isinstance(data, list) and data and rng.random() < 0.7:
        at = rng.randrange(len(data))
        return [*data[:at], *([] if rng.random() < 0.4 else [edited(data[at], rng)]), *data[at + 1 :]]
    return rng.choice(VALUES)


def folder(source: Path, place: Path, rng: Random) -> Path:
    """A copy of `source` with one or two of its files changed."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    for path in rng.sample(files, rng.randrange(1, min(3, len(files) + 1))):
        kind = rng.randrange(6)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            path.write_bytes(
                rng.choice([b"", b"\0" * 9, b"{", b"[]", b"null", b"version https://git-lfs.github.com/spec/v1\n"])
            )
        elif kind == 2 or path.suffix != ".json":
            path.write_bytes(damaged(path.read_bytes(), rng))
        elif kind == 3:
            path.unlink()
            path.mkdir()
        else:
            path.write_text(json.dumps(edited(json.loads(path.read_text()), rng)))
    return place


def target(rng: Random) -> str:
    def position() -> str:
        return str(rng.choice([-1, 0, 1, 2, 3, 7, 99, 10**30])) if rng.random() < 0.6 else text(rng, 3)

    def token() -> str:
        return rng.choice(TOKENS) if rng.random() < 0.7 else text(rng, 3)

    made = [
        lambda: f"mask:{position()}", lambda: f"mask:{position()}:{token()}",
        lambda: f"diff:{position()}:{token()}:{token()}", lambda: f"probe:{text(rng)}", lambda: text(rng),
        lambda: f"{rng.choice(['Mask', 'mask ', 'logit', '', 'probe'])}:{position()}",
        lambda: ":" * rng.randrange(1, 5), lambda: f"mask:{position()}{text(rng)}",
    ]  # fmt: skip
    return rng.choice(made)()


def seed(rng: Random) -> Any:
    whole = [0, 1, -1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63), 20240101123456]
    return rng.choice([*whole, *whole, rng.getrandbits(62), 1.0, 1.5, "7", "x", None, True, [1], float("nan")])


def name(rng: Random) -> str:
    made = [
        text(rng, 5),
        "../" * rng.randrange(1, 4),
        "a/b",
        "CON",
        "nul.txt",
        ".",
        "..",
        "~",
        "a" * 300,
        "\udcff",
        "-x",
    ]
    return rng.choice(made)

"""Studies: what `isotrace reproduce NAME` computes, one file per table, registered by a decorator.

Each has quick settings, made for two cores and a few minutes, and full ones. A study returns plain rows; every row
has the same keys, and numbers that have an interval bring it as `NAME_ci`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.base.errors import InputError

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""(items, what is done to them) → the same items, with a progress bar."""

MODULES: tuple[str, ...] = ("planted", "head_screening", "approximations", "edge_methods", "task_circuits", "network")
"""The modules of this package that hold studies."""


@dataclass(frozen=True)
class Setting:
    """quick: the quick settings. work: a folder for what is kept between runs. progress: see `Progress`.
    dictionaries: subject source → folder of a dictionary for it, where a study needs one that is not bundled."""

    quick: bool
    work: Path
    seed: int
    progress: Progress
    dictionaries: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """`tables`: name → rows. `notes`: what the reader must know: which goals were missed, what was left out."""

    tables: dict[str, list[dict[str, Any]]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    name: str
    about: str
    run: Callable[[Setting], Outcome]


STUDIES: dict[str, Study] = {}


def study(name: str, about: str) -> Callable[[Callable[[Setting], Outcome]], Callable[[Setting], Outcome]]:
    def add(run: Callable[[Setting], Outcome]) -> Callable[[Setting], Outcome]:
        STUDIES[name] = Study(name, about, run)
        return run

    return add


def studies() -> dict[str, Study]:
    """All of them, by name."""
    for module in MODULES:
        import_module(f"isotrace.studies.{module}")
    return STUDIES


def study_of(name: str) -> Study:
    """Raises InputError for a name that is not registered."""
    found = studies()
    if name not in found:
        raise InputError(f"no study {name!r}: give one of {', '.join(found)}.")
    return found[name]


def bundled_table(name: str) -> pl.DataFrame:
    """A data set of `assets/tasks`, every column as text: `bbb`, `esol`, `bace`, `reactions`, `antibodies`."""
    return pl.read_csv(str(files("isotrace") / "assets" / "tasks" / f"{name}.csv.gz"), infer_schema=False)

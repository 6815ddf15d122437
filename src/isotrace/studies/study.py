"""Studies: what `isotrace reproduce NAME` computes, one file per table, registered by a decorator.

Each has quick settings, made for two cores and a few minutes, and full ones. A study returns plain rows; every row
has the same keys, and numbers that have an interval bring it as `NAME_ci`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.base.progress import Progress
from isotrace.base.registry import Registry
from isotrace.base.settings import checked_seed


@dataclass(frozen=True)
class Setting:
    """quick: the quick settings. work: a folder for what is kept between runs. progress: see `Progress`.
    dictionaries: subject source → folder of a dictionary for it, where a study needs one that is not bundled."""

    quick: bool
    work: Path
    seed: int
    progress: Progress
    dictionaries: dict[str, str]

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True)
class Line:
    """Of a plot, or dots where `dots`; `low` and `high` are the ends of the interval of every y."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dots: bool = False


@dataclass(frozen=True)
class Plot:
    """`x`, `y`: what the axes show. `said`: what there is to see, below it."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    said: str = ""


@dataclass(frozen=True)
class Outcome:
    """`tables`: name → rows. `notes`: what the reader must know, the verdict first: which goals were missed, what was
    left out."""

    tables: dict[str, list[dict[str, Any]]]
    notes: tuple[str, ...]
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Study:
    name: str
    about: str
    run: Callable[[Setting], Outcome]


_SHIPPED = {name: name for name in ("planted", "head_screening", "approximations", "edge_methods")}
_SHIPPED |= {
    f"circuit_{task}": "task_circuits" for task in ("bbb", "bace", "esol", "reaction_class", "v_gene", "paratope")
}
_SHIPPED |= {
    "network": "network",
    "curvature": "curvature",
    "circuits": "effects.circuits",
    "node_effects": "effects.node_effects",
    "neuron_paths": "effects.neuron_paths",
    "cipher_contrast": "effects.cipher_contrast",
    "pairs": "effects.pairs",
    "atom_truth": "atoms.atom_truth",
    "graded_labelers": "features.graded_labelers",
    **{name: f"features.{name}" for name in ("neuron_groups", "basis_question")},
    "matryoshka_levels": "features.matryoshka_levels",
    "response_curves": "features.response_curves",
    "reaction_attribution": "reactions.attribution",
    **dict.fromkeys(("steer_logp", "steer_annalog", "steer_antiberty"), "steering.steered"),
    "steer_planted": "steering.steer_planted",
    "clamping": "learning.clamping",
    "circuit_difficulty": "difficulty.circuit_difficulty",
    "depth_score": "difficulty.depth_score",
    "commitment": "difficulty.commitment",
    "execution_gap": "difficulty.execution_gap",
    "recall_reasoning": "difficulty.recall_reasoning",
    "rich_lazy": "learning.rich_lazy",
    "local_interaction": "learning.local_interaction",
    "opposing": "learning.opposing",
    "ordinal_patterns": "learning.ordinal_patterns",
    "sub_attention": "learning.sub_attention",
    "adapt_esol": "transfer.adapt_esol",
    "functional_percolation": "percolation.functional_percolation",
    "knowledge_paths": "knowledge.knowledge_paths",
}
STUDIES: Registry[Study] = Registry(
    "study", "isotrace.studies", {name: f"isotrace.studies.{module}" for name, module in _SHIPPED.items()}
)


def study(name: str, about: str) -> Callable[[Callable[[Setting], Outcome]], Callable[[Setting], Outcome]]:
    def add(run: Callable[[Setting], Outcome]) -> Callable[[Setting], Outcome]:
        STUDIES.register(name, Study(name, about, run))
        return run

    return add


def bundled_table(name: str) -> pl.DataFrame:
    """A data set of `assets/tasks`, every column as text: `bbb`, `esol`, `lipophilicity`, `bace`, `reactions`,
    `antibodies`."""
    return pl.read_csv(str(files("isotrace") / "assets" / "tasks" / f"{name}.csv.gz"), infer_schema=False)

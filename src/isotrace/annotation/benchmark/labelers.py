"""Who names features: given activations on some sequences and a list of concepts, a label for each function.

`builtin` is what `isotrace annotate` does. `best_concept` is the same without its tests: it never abstains.
`token_identity` says the token that goes best with where a function fires. `misled` shows another labeler activations
that were moved to other sequences: what it then says is about nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse

from isotrace.annotation.benchmark.grade import Label
from isotrace.annotation.benchmark.ground import Ground
from isotrace.annotation.benchmark.rules import carries, quoted
from isotrace.annotation.cards.describe import label as named
from isotrace.annotation.combine import combine
from isotrace.annotation.nulls.permutation import Tracks
from isotrace.annotation.site import Sides, examine
from isotrace.datasets.annotated import untestable
from isotrace.stats.bootstrap import bootstrap_weights

QUANTILES = (0.0, 0.5, 0.75, 0.9)
MIN_POSITIVE = 20


@dataclass(frozen=True, eq=False)
class Shown:
    """What a labeler sees. `activations`: CSR float32 `[tokens, functions]` ≥ 0 of the sequences of `ground`, whose
    concepts are the list that it may use. `held`: bool `[sequences]`, a half to test what was found on the other; no
    group of relatives is in both. `seed`: of what it draws."""

    ground: Ground
    activations: sparse.csr_matrix
    held: np.ndarray
    seed: int


Labeler = Callable[[Shown], list[Label]]
"""One label per function."""
NOTHING = "no concept"


@dataclass(frozen=True)
class Builtin:
    """Best concept by F1 that passes the rules of `isotrace annotate`; see docs/annotate.md."""

    n_permutations: int = 500
    n_bootstrap: int = 200

    def __call__(self, shown: Shown) -> list[Label]:
        ground, special = shown.ground, shown.ground.special
        reasons = untestable(ground.table, shown.held, special, MIN_POSITIVE)[: len(ground.table.token_concepts)]
        table = ground.table.pick(np.flatnonzero([reason is None for reason in reasons]))
        sides = Sides.of(table, shown.held, special, 1.0, shown.seed)
        found = examine(
            shown.activations, sides, bootstrap_weights(int(shown.held.sum()), self.n_bootstrap, shown.seed),
            quantiles=QUANTILES, per_feature=3, per_concept=3, n_permutations=self.n_permutations, seed=shown.seed,
        )  # fmt: skip
        labels = named(combine("functions", {0: found}, table.token_concepts).frame, pl.DataFrame())
        said = {row["feature"]: row["label"] for row in labels.to_dicts()}
        every = (said.get(f) for f in range(shown.activations.get_shape()[1]))
        return [Label(NOTHING) if name is None else of_concept(name) for name in every]


def of_concept(name: str) -> Label:
    return Label(name, carries(name))


def best_concept(shown: Shown) -> list[Label]:
    names = [concept.name for concept in shown.ground.table.token_concepts]
    return [of_concept(names[i]) for i in _best(shown.ground.matrix, shown)]


def token_identity(shown: Shown) -> list[Label]:
    texts, number = np.unique(shown.ground.texts.astype(str), return_inverse=True)
    n = len(number)
    matrix = sparse.csr_matrix((np.ones(n, np.float32), (number, np.arange(n))), shape=(len(texts), n))
    return [Label(f"the token {texts[i]}", f"token({quoted(str(texts[i]))})") for i in _best(matrix, shown)]


def _best(matrix: sparse.csr_matrix, shown: Shown) -> np.ndarray:
    """int64 `[functions]`: the row of `matrix [rows, tokens]` of the largest F1 with where each function fires."""
    real = ~shown.ground.special
    on = sparse.csr_matrix(shown.activations[real] > 0, dtype=np.float32)
    matrix = matrix[:, real]
    both = sparse.csr_matrix(matrix @ on).toarray()
    sizes = [np.asarray(m.sum(axis=axis)).ravel() for m, axis in ((matrix, 1), (on, 0))]
    return (both / (sizes[0][:, None] + sizes[1][None] + 1e-9)).argmax(0)


def misled(labeler: Labeler) -> Labeler:
    """`labeler`, shown activations that were exchanged between sequences of like length and turned within them."""

    def label(shown: Shown) -> list[Label]:
        tracks = Tracks.of(shown.ground.table.sequence_ptr, shown.ground.special)
        moved = shown.activations[tracks.source(shown.seed, 0)]
        return labeler(Shown(shown.ground, sparse.csr_matrix(moved), shown.held, shown.seed))

    return label

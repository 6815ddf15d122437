"""What an adapted subject is worth on the test part: each metric with a bootstrap over groups and seeds, and the same
of what it must be better than."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isotrace.domains.domain import Domain
from isotrace.probing.crossed import forest
from isotrace.stats.bootstrap import bootstrap_weights, group_weights, valued
from isotrace.stats.metrics import METRICS
from isotrace.transfer.adapting.tasks import Property, TaskTable

Draws = dict[str, dict[str, np.ndarray]]
"""Property → metric → `[1 + n_bootstrap]`, the first of the test part as it is."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """`y [rows, properties]` of the test part; `weights [1 + n_bootstrap, rows]`: draws of whole groups, the first all
    ones, the same for all that is compared."""

    table: TaskTable
    y: np.ndarray
    weights: np.ndarray
    seed: int

    @classmethod
    def of(cls, table: TaskTable, n_bootstrap: int, seed: int) -> "HeldOut":
        rows = table.rows("test")
        weights = group_weights(table.groups[rows].tolist(), n_bootstrap, (seed, 9))
        return cls(table, table.y[rows], weights, seed)

    def draws(self, outputs: Sequence[np.ndarray], who: int) -> Draws:
        """`outputs`: `[rows, outputs]` of each training seed. The value is the mean over seeds; a draw takes groups,
        and as many seeds with replacement as there are. `who` sets the draw of seeds apart from others'."""
        n_draws = len(self.weights) - 1
        seeds = np.concatenate([
            np.ones((1, len(outputs))), bootstrap_weights(len(outputs), n_draws, (self.seed, 10, who))
        ]) / len(outputs)  # fmt: skip
        found: Draws = {}
        for t, prop in enumerate(self.table.properties):
            there = np.isfinite(self.y[:, t])
            y, weights = self.y[there, t], self.weights[:, there]
            found[prop.label] = {
                metric: np.einsum(
                    "ds,sd->d",
                    seeds,
                    np.stack([METRICS[metric](one[there, prop.columns], y, weights) for one in outputs]),
                )
                for metric in metrics_of(prop)
            }
        return found


def metrics_of(prop: Property) -> tuple[str, ...]:
    """Names of METRICS, that which is compared first."""
    if prop.kind == "regression":
        return ("r2", "rmse", "spearman")
    return ("auroc", "auprc", "balanced_accuracy") if prop.n_outputs == 1 else ("macro_auroc", "balanced_accuracy")


def forest_outputs(table: TaskTable, domain: Domain, seed: int) -> np.ndarray:
    """`[test rows, outputs]` of a random forest on fingerprints, fitted on train and valid. Of whole sequences only."""
    prints = domain.fingerprints([example.text for example in table.examples])
    test, found = table.rows("test"), np.zeros((len(table.rows("test")), table.n_outputs))
    for t, prop in enumerate(table.properties):
        learned = table.rows("train", "valid")
        learned = learned[np.isfinite(table.y[learned, t])]
        rows = np.concatenate([learned, test])
        y = np.where(np.isfinite(table.y[rows, t]), table.y[rows, t], 0.0)  # those of the test part are not looked at
        n = len(learned)
        task = "regression" if prop.kind == "regression" else "classification"
        folds = [(np.arange(n), np.arange(0), np.arange(n, len(rows)))]
        found[:, prop.columns] = forest(prints[rows], y, task, folds, seed)[n:]
    return found


def gain(own: np.ndarray, other: np.ndarray, metric: str) -> dict[str, Any]:
    """By how much `own [1 + n_bootstrap]` is better."""
    return valued((other - own) if metric == "rmse" else (own - other))

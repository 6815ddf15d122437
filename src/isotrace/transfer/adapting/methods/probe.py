"""probe: a linear readout of the pooled final hidden state, ridge or logistic regression; nothing else is fitted."""

import numpy as np
from sklearn.model_selection import GroupKFold

from isotrace.base.errors import InputError
from isotrace.probing.linear import Task, searched
from isotrace.probing.states import pooled_states
from isotrace.transfer.adapting.head import Readout
from isotrace.transfer.adapting.method import METHODS, Adapted, Job
from isotrace.transfer.adapting.tasks import TaskTable

STRENGTHS: dict[Task, tuple[float, ...]] = {
    "regression": tuple(10.0**k for k in np.linspace(-1, 5, 13)),  # alpha of ridge
    "classification": tuple(10.0**k for k in np.linspace(-5, 1, 13)),  # C of logistic regression
}
FOLDS = 5


@METHODS.named("probe")
def probe(job: Job) -> Adapted:
    """On the parts train and valid: the strength is chosen by cross-validation over whole groups."""
    table, subject = job.table, job.subject
    layers, (rows, examples) = (subject.n_layers,), learned(job)
    states = pooled_states(subject, examples, layers, job.pool, job.progress)
    weight, bias = np.zeros((states.shape[1], table.n_outputs)), np.zeros(table.n_outputs)
    said = []
    for t, prop in enumerate(table.properties):
        own = np.isfinite(table.y[rows, t])
        y, x, groups = table.y[rows[own], t], states[own], table.groups[rows[own]]
        task: Task = "regression" if prop.kind == "regression" else "classification"
        cv = folds(groups)
        (weight[:, prop.columns], bias[prop.columns]), strength = searched(x, y, task, STRENGTHS[task], cv, groups)
        said.append(f"{prop.label}: {'alpha' if task == 'regression' else 'C'} {strength:.3g}")
    n_fitted = weight.size + bias.size
    return Adapted(subject, Readout(layers, job.pool, weight, bias), (), n_fitted, "; ".join(said), True)


def learned(job: Job) -> tuple[np.ndarray, list]:
    """(rows of the table, the examples that have them one after the other): of train and valid, every way to write
    an example."""
    table = job.table
    if table.by_token:
        return table.rows("train", "valid"), [table.examples[i] for i in table.members("train", "valid")]
    pairs = [(i, one) for i in table.members("train", "valid") for one in job.spelled[i]]
    return np.asarray([i for i, _ in pairs]), [one for _, one in pairs]


def folds(groups: np.ndarray) -> GroupKFold:
    """Raises InputError for one group."""
    n = min(FOLDS, len(np.unique(groups)))
    if n < 2:
        raise InputError("all that is learned from is of one group: give more diverse sequences, or name --group.")
    return GroupKFold(n)


def parts(table: TaskTable, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(fitted on, held out) of each fold."""
    return [*folds(groups).split(groups[:, None], groups=groups)]

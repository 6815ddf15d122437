"""probe_all: as probe, on a mixture of all layers whose weights are fitted with it, a softmax over layers (Peters et
al. 2018, arXiv:1802.05365).

h = Σ_l softmax(a)_l z_l with z_l the pooled hidden state of layer l, standardised; outputs = h W + b; loss + λ ‖W‖².
The minimum over a, W and b together is found by L-BFGS, along falling λ from the last solution on.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isotrace.probing.states import pooled_states
from isotrace.transfer.adapting.head import Readout, Scale, loss, scale_of
from isotrace.transfer.adapting.method import METHODS, Adapted, Job
from isotrace.transfer.adapting.methods.probe import learned, parts
from isotrace.transfer.adapting.tasks import TaskTable

PENALTIES = tuple(10.0**k for k in np.linspace(1, -4, 11))
ITERATIONS = 60


@METHODS.named("probe_all")
def probe_all(job: Job) -> Adapted:
    table, subject = job.table, job.subject
    layers, (rows, examples) = tuple(range(subject.n_layers + 1)), learned(job)
    states = pooled_states(subject, examples, layers, job.pool, job.progress)
    groups = table.groups[rows]
    errors = np.zeros(len(PENALTIES))
    for fit, held in job.progress(parts(table, groups), "probe of all layers"):
        scale = scale_of(states[fit], table, rows[fit])
        x, y = (_layered(states[held], scale, len(layers)), torch.from_numpy(table.y[rows[held]]))
        for i, (a, weight, bias) in enumerate(_path(states[fit], table, rows[fit], scale, len(layers), PENALTIES)):
            errors[i] += float(loss(_outputs(x, a, weight, bias), y, table.properties, scale)) * len(held)
    best = int(errors.argmin())
    scale = scale_of(states, table, rows)
    a, weight, bias = _path(states, table, rows, scale, len(layers), PENALTIES[: best + 1])[-1]
    shares = a.softmax(0)
    whole = (shares[:, None, None] * weight).flatten(0, 1).numpy() / scale.sd[:, None]
    raw = (bias.numpy() - scale.mean @ whole) * scale.y_sd + scale.y_mean
    said = f"penalty {PENALTIES[best]:.3g}; layers {', '.join(f'{share:.2f}' for share in shares.tolist())}"
    readout = Readout(layers, job.pool, whole * scale.y_sd, raw)
    return Adapted(subject, readout, (), weight.numel() + bias.numel() + len(a), said, True)


def _layered(states: np.ndarray, scale: Scale, n_layers: int) -> Tensor:
    """float64 `[rows, layers, d]`, standardised. Of the pool mean+max each layer is its mean, then its maximum."""
    z = (states.astype(np.float64) - scale.mean) / scale.sd
    return torch.from_numpy(z).unflatten(1, (n_layers, -1))


def _outputs(x: Tensor, a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("nld,l->nd", x, a.softmax(0)) @ weight + bias


def _path(
    states: np.ndarray, table: TaskTable, rows: np.ndarray, scale: Scale, n_layers: int,
    penalties: Sequence[float],
) -> list[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """(a `[layers]`, W `[d, outputs]`, b `[outputs]`) of each penalty."""
    x, y = _layered(states, scale, n_layers), torch.from_numpy(table.y[rows])
    shapes = ((n_layers,), (x.shape[2], table.n_outputs), (table.n_outputs,))
    a, weight, bias = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    found = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS([a, weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure(optimizer=optimizer, penalty=penalty) -> Tensor:
            optimizer.zero_grad()
            value = loss(_outputs(x, a, weight, bias), y, table.properties, scale) + penalty * (weight**2).sum()
            value.backward()
            return value

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        found.append((a.detach().clone(), weight.detach().clone(), bias.detach().clone()))
    return found

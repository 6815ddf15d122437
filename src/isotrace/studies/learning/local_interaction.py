"""Local interaction basis: directions of one cut of a network ordered by what the next cut reads of them, degeneracy of
linear maps, and whether molm needs fewer of these directions than of principal components (METHODS_BASES §15, after
Bushnaq et al. 2024, arXiv:2405.10928, whose authors found no gain on language models).

    G = fᵀf/n = U D Uᵀ, R = U D^(−½)        f centred; directions that do not vary are dropped
    M = E[JᵀJ], J = C_outᵀ ∂f_out/∂f        with positions: over outputs summed, over inputs averaged, by ±1 probes
    R⁺ M R⁺ᵀ = V Λ Vᵀ, C = R V Λ^½          f̂ = f C, largest Λ first; what nobody reads is dropped

f̂ does not change, but for signs, when f is mixed by any invertible matrix that the next map undoes; principal
components do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.interventions import Residuals
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.stats.share import share
from isotrace.studies.effects.inputs import SUBJECT, drawn
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Batch, Subject, load_subject
from isotrace.subjects.targets import parse_target

CUT = 1e-9
"""Of the largest eigenvalue: what is smaller is none."""
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192)
WHOLE = 0.99


@dataclass(frozen=True)
class LocalBasis:
    """`forward [d, k]`: f̂ = (f − mean) forward; `back [k, d]`: f − mean = f̂ back, of what is kept; `read [k]`: Λ."""

    mean: np.ndarray
    forward: np.ndarray
    back: np.ndarray
    read: np.ndarray

    def first(self, k: int) -> np.ndarray:
        """`[d, d]`: f − mean with the first k directions only."""
        return self.forward[:, :k] @ self.back[:k]


def principal(f: np.ndarray) -> LocalBasis:
    """Principal components of `f [n, d]`, which are the basis of the last cut."""
    mean = f.mean(0)
    values, vectors = _spectrum((f - mean).T @ (f - mean) / len(f))
    return LocalBasis(mean, vectors, vectors.T, values)


def local_basis(f: np.ndarray, moment: np.ndarray) -> LocalBasis:
    """Of activations `f [n, d]` and M `[d, d]`, see the module."""
    mean = f.mean(0)
    d, u = _spectrum((f - mean).T @ (f - mean) / len(f))
    narrow, wide = u / np.sqrt(d), np.sqrt(d)[:, None] * u.T  # R and R⁺
    read, v = _spectrum(wide @ moment @ wide.T)
    return LocalBasis(mean, narrow @ v * np.sqrt(read), (v / np.sqrt(read)).T @ wide, read)


def _spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues that are not nothing, the largest first, and their vectors as columns."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    keep = np.flatnonzero(values > CUT * values.max())[::-1]
    return values[keep], vectors[:, keep]


def moment(jacobians: np.ndarray, out: LocalBasis | None = None) -> np.ndarray:
    """M of ∂f_out/∂f `[n, d_out, d]`; without `out` the outputs are taken as they are."""
    read = jacobians if out is None else np.einsum("ok,nod->nkd", out.forward, jacobians)
    return np.einsum("nkd,nke->de", read, read) / len(read)


def edges(f: np.ndarray, jacobians: np.ndarray, basis: LocalBasis, out: LocalBasis | None = None) -> np.ndarray:
    """`[k_out, k]`: E[(∂f̂_out,j/∂f̂_i · f̂_i)²]."""
    read = jacobians if out is None else np.einsum("ok,nod->nkd", out.forward, jacobians)
    slopes = read @ basis.back.T
    return ((slopes * ((f - basis.mean) @ basis.forward)[:, None]) ** 2).mean(0)


def within(weights: np.ndarray, modules: np.ndarray) -> float:
    """Share of the edges `[outputs, nodes]` that lead from each node to the module of outputs it writes to most;
    `modules [outputs]`."""
    by = np.stack([weights[modules == m].sum(0) for m in np.unique(modules)])
    return float(by.max(0).sum() / by.sum())


@dataclass(frozen=True)
class Degeneracy:
    """Of a map of `shape` (inputs with the bias, outputs): ranks of its inputs and of the gradients at its outputs."""

    shape: tuple[int, int]
    inputs: int
    gradients: int

    @property
    def free(self) -> int:
        """Directions of the weights that change no output, to first order."""
        return self.shape[0] * self.shape[1] - self.inputs * self.gradients


def degeneracy(inputs: np.ndarray, gradients: np.ndarray, cuts: Sequence[float]) -> list[Degeneracy]:
    """For every cut-off, relative to the largest eigenvalue; `inputs [n, d_in]` without the bias, `gradients
    [m, d_out]`. A numerical rank is a curve and no number."""
    with_bias = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    spectra = [np.linalg.eigvalsh(x.T @ x / len(x)) for x in (with_bias, gradients)]
    shape = (with_bias.shape[1], gradients.shape[1])
    return [Degeneracy(shape, *(int((s > cut * s.max()).sum()) for s in spectra)) for cut in cuts]


def alike(active: np.ndarray, jaccard: float = 0.999) -> list[list[int]]:
    """Groups of two or more units that fire together, of `active [n, units]` bool: every unit joins the first of those
    before it whose firings overlap by more than `jaccard`."""
    both = active.T.astype(float) @ active
    counts = np.diag(both)
    union = counts[:, None] + counts - both
    groups: dict[int, list[int]] = {}
    for unit in np.flatnonzero(counts > 0).tolist():
        first = next((g for g in groups if both[g, unit] > jaccard * union[g, unit]), unit)
        groups.setdefault(first, []).append(unit)
    return [group for group in groups.values() if len(group) > 1]


@study("local_interaction", "molm: local interaction basis against principal components, by what predictions need")
def run(setting: Setting) -> Outcome:
    subject = load_subject(SUBJECT)
    table = bundled_table("bbb")
    train = table.filter(table["split_scaffold"] == "train")["smiles"][: 48 if setting.quick else 400].to_list()
    cases = drawn(subject, "mask", 40 if setting.quick else 200, setting.seed)
    rows = []
    for layer in setting.progress(range(subject.n_layers - 1), "layers"):
        f, m = moment_by_probes(subject, layer, train, 4, setting.seed)
        bases = {"local interaction": local_basis(f, m), "principal components": principal(f)}
        rows += needed_rows(subject, layer, bases, cases, setting.seed)
    return Outcome({"needed": rows}, notes(rows))


def moment_by_probes(
    subject: Subject, layer: int, texts: Sequence[str], n_probes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(f `[tokens, d]`, M `[d, d]`) of the stream behind `layer`, the final hidden state being what reads it, along its
    principal components."""
    rng = torch.Generator().manual_seed(seed)
    batches = [subject.tokenize([text]) for text in texts]
    with torch.no_grad():
        finals = [subject.hidden(b.ids, b.mask)[0].double().cpu().numpy() for b in batches]
    out = torch.from_numpy(principal(np.concatenate(finals)).forward).float().to(subject.device)
    seen, grown = [], []
    for batch in batches:
        found: dict[str, Tensor] = {}
        for _ in range(n_probes):

            def leaf(at: int, values: Tensor, found: dict[str, Tensor] = found) -> Tensor:
                if at == layer:
                    found["f"] = values.detach().requires_grad_(True)
                    return found["f"]
                return values

            with torch.enable_grad(), Residuals().edited(subject, leaf):
                read = subject.hidden(batch.ids, batch.mask)[0] @ out
                signs = torch.randint(0, 2, read.shape, generator=rng).to(read) * 2 - 1
                (slope,) = torch.autograd.grad((read * signs).sum(), [found["f"]])
            grown.append(slope[0, :, 0].double().cpu().numpy())
        seen.append(found["f"].detach()[0, :, 0].double().cpu().numpy())
    g = np.concatenate(grown)
    return np.concatenate(seen), g.T @ g / len(g)


@torch.no_grad()
def needed_rows(
    subject: Subject, layer: int, bases: dict[str, LocalBasis], cases: Sequence[tuple[str, str]], seed: int
) -> list[dict[str, Any]]:
    """For each basis, the fewest directions of `SIZES` that keep `WHOLE` of the log-probability of masked atoms, all
    others at their mean; 95 % interval of what they keep, and of the number, over molecules."""
    rows, sizes = [], [0, *(k for k in SIZES if k < subject.d_model), subject.d_model]
    for name, basis in bases.items():
        values = np.array([_values(subject, layer, basis, sizes, *case) for case in cases])  # [molecules, sizes]
        weights = np.concatenate([np.ones((1, len(values))), bootstrap_weights(len(values), 500, seed)])
        means = weights @ values / len(values)
        kept = share(means - means[:, :1], means[:, -1:] - means[:, :1], 1e-6)
        # the first size from which on all keep as much
        enough = np.flip(np.logical_and.accumulate(np.flip(kept >= WHOLE, 1), 1), 1)
        fewest = np.array(sizes)[enough.argmax(1)]
        at = sizes.index(int(fewest[0]))
        rows.append({"layer": layer, "basis": name, "directions": len(basis.read), "molecules": len(values),
                     "needed": int(fewest[0]), "needed_ci": interval(fewest[1:].astype(float)),
                     "kept": float(kept[0, at]), "kept_ci": interval(kept[1:, at])}
                    | {f"k={k}": float(v) for k, v in zip(sizes, kept[0], strict=True)})  # fmt: skip
    return rows


def _values(
    subject: Subject, layer: int, basis: LocalBasis, sizes: Sequence[int], text: str, asked: str
) -> list[float]:  # fmt: skip
    batch = subject.tokenize([text])
    target, position = parse_target(asked, subject, batch), int(asked.partition(":")[2])
    given = target.prepare(subject, batch)
    mean = torch.from_numpy(basis.mean).float().to(subject.device)
    found = []
    for k in sizes:
        keep = None if k == subject.d_model else torch.from_numpy(basis.first(k)).float().to(subject.device)
        found.append(_log_probability(subject, given, position, target.positive, _projected(layer, mean, keep)))
    return found


def _projected(layer: int, mean: Tensor, keep: Tensor | None) -> Callable[[int, Tensor], Tensor]:
    return lambda at, x: x if at != layer or keep is None else mean + (x - mean) @ keep


def _log_probability(subject: Subject, batch: Batch, position: int, token: Any, edit: Any) -> float:
    with Residuals().edited(subject, edit):
        final = subject.hidden(batch.ids, batch.mask)
    return float(subject.head(final[:, position]).log_softmax(-1)[0, token])


def notes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    found = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        local, usual = (row for row in rows if row["layer"] == layer)
        fewer = local["needed_ci"][1] < usual["needed_ci"][0]
        found.append(
            f"Behind layer {layer}: {local['needed']} directions of the local interaction basis and {usual['needed']} "
            f"principal components for {WHOLE:.0%}; intervals {'apart' if fewer else 'overlap'}."
        )
    return tuple(found)

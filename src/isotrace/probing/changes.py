"""Which features change between wild type and mutant, and whether their change goes with what was measured.

1. change   of a feature by a single mutation: its activations on the mutated residue and AROUND residues on either
            side, summed, in the variant less in the wild type; both are read as they are, nothing masked
2. choose   sites are dealt to two halves. On one, the TOP features of largest |Spearman| of change and effect, among
            those that change in at least CHANGED variants there
3. judge    on the other half: each in the direction chosen, p from exchanging whole sites, q over the TOP; and all of
            them together, their changes in standard deviations, weighted by |Spearman|, both of the first half
4. beside   as many of the subject's neurons, of random directions, and of neurons of an untrained copy, likewise
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.stats import rankdata

from isotrace.activations.harvest import record
from isotrace.annotation.nulls.sources import Site, dictionary_sites, encoded, neuron_sites, untrained_subject
from isotrace.base.progress import Progress, silent
from isotrace.datasets.mutations import Scan, Variant
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.domain import Domain
from isotrace.domains.mutations import mutated
from isotrace.domains.substitutions import RESIDUES
from isotrace.evaluation.controls import random_directions
from isotrace.probing.scan import BATCH_TOKENS, ScanSettings, spearmans
from isotrace.stats.permutation import p_values, q_values
from isotrace.stats.splits import deal
from isotrace.subjects.subject import Subject

AROUND, TOP, CHANGED, SHOWN = 5, 20, 10, 5
"""Residues on either side; features chosen; variants in which one changes at least; features named per variant."""
SITES, VARIANTS, PERMUTATIONS = 10, 20, 500
"""Sites in all and variants of a half below which nothing is said; exchanges of sites behind every p."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Features of one source: `keys` (layer, feature) `[n]`, `chosen` their Spearman on the half that chose them,
    `held` `[n, 1 + n_bootstrap]` on the other half, in the direction chosen, `p` and `q` `[n]` there; `together`
    `[1 + n_bootstrap]` and its `p_together`."""

    keys: tuple[tuple[int, int], ...]
    chosen: np.ndarray
    held: np.ndarray
    p: np.ndarray
    q: np.ndarray
    together: np.ndarray
    p_together: float


@dataclass(frozen=True, eq=False)
class Changes:
    """`sources`: dictionary, neurons, random, untrained. `most`: (variant, layer, feature, before, after) of the SHOWN
    features of the dictionary that change most in each. `held`: variants and sites of the half that judges. `reason`:
    why there is no split, and then no sources."""

    most: tuple[tuple[str, int, int, float, float], ...]
    sources: dict[str, Judged]
    n_held: tuple[int, int]
    reason: str | None = None


def feature_changes(
    subject: Subject, dictionary: Dictionary, domain: Domain, scan: Scan, settings: ScanSettings,
    progress: Progress = silent,
) -> Changes:  # fmt: skip
    """Of the single mutations of `scan`."""
    singles = [variant for variant in scan.variants if len(variant.changes) == 1]
    sign = 1.0 if settings.worse == "low" else -1.0
    effects = sign * np.asarray([variant.effect for variant in singles])
    sites = np.asarray([variant.sites[0] for variant in singles], dtype=np.int64)
    window = _windows(subject, domain, scan.wild_type)
    own = dictionary_sites("dictionary", dictionary)
    blank = untrained_subject(subject, settings.seed)
    before, after = _sums(subject, own, scan.wild_type, singles, window, progress)
    most = _most(singles, own, before, after)
    if (n := len({*sites.tolist()})) < SITES:
        return Changes(most, {}, (0, 0), f"single mutations of {n} sites, and halves of them need {SITES}")
    held = deal([str(site) for site in sites], (0.5, 0.5), settings.seed) == 1
    if min(held.sum(), (~held).sum()) < VARIANTS:
        return Changes(most, {}, (0, 0), f"{len(sites)} single mutations, and a half needs {VARIANTS}")
    active = encoded(subject, own, [scan.wild_type])[0]
    k = max(1, round(active.nnz / ((len(active.indptr) - 1) * len(own))))
    directions = dictionary_sites("random", _random(subject, dictionary, scan.wild_type, k, settings.seed))
    layers = dictionary.config.layers
    beside = {
        "neurons": (subject, neuron_sites(subject, layers)),
        "random": (subject, directions),
        "untrained": (blank, neuron_sites(blank, layers)),
    }
    rng = np.random.default_rng((settings.seed, 7))
    residues = np.asarray([RESIDUES.index(variant.changes[0].after) for variant in singles])
    exchanged = _exchanges(effects[held], sites[held], residues[held], rng)
    known = effects, sites, held, exchanged, settings
    sources = {"dictionary": _judged(after - before, own, *known)}
    for name, (one, places) in beside.items():
        there, then = _sums(one, places, scan.wild_type, singles, window, progress)
        sources[name] = _judged(then - there, places, *known)
    return Changes(most, sources, (int(held.sum()), len({*sites[held].tolist()})))


def _windows(subject: Subject, domain: Domain, wild_type: str) -> list[list[int]]:
    """Token positions of the window around each residue."""
    batch = subject.tokenize([wild_type])
    reading = domain.read(wild_type, subject.tokens(batch.ids[0]), batch.offsets[0])
    token = {element: place for place, part in enumerate(reading.elements) for element in part}
    near = [range(max(0, e - AROUND), min(len(wild_type), e + AROUND + 1)) for e in range(len(wild_type))]
    return [[*dict.fromkeys(token[i] for i in around)] for around in near]


def _sums(
    subject: Subject, places: Sequence[Site], wild_type: str, singles: Sequence[Variant],
    window: Sequence[Sequence[int]], progress: Progress,
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:  # fmt: skip
    """Activations `[variants, features of all sites]` summed over each variant's window: in the wild type, and in the
    variant."""
    starts = np.concatenate([[0], np.cumsum([place.n_features for place in places])])
    hookpoints = sorted({place.hookpoint for place in places})
    texts = [wild_type, *(mutated(wild_type, variant.changes) for variant in singles)]
    own = [window[variant.sites[0] - 1] for variant in singles]
    shape = (len(singles), int(starts[-1]))

    def read(part: Sequence[str], rows: Sequence[tuple[int, int, Sequence[int]]]) -> sparse.csr_matrix:
        """`rows`: (row of the result, place in `part`, tokens)."""
        batch, found = subject.tokenize(part), []
        texts_of = np.concatenate([np.full(len(at), i) for _, i, at in rows])
        tokens_of = np.concatenate([np.asarray(at) for *_, at in rows])
        row_of = np.concatenate([np.full(len(at), row) for row, _, at in rows])

        def take(index: int, x: torch.Tensor) -> None:
            read_here = x[torch.from_numpy(texts_of).to(x.device), torch.from_numpy(tokens_of).to(x.device)]
            for start, place in zip(starts, places, strict=False):
                if place.hookpoint == hookpoints[index]:
                    at, columns, values = place.encode(read_here)
                    found.append((values, row_of[at], columns + start))

        record(subject, batch.to(subject.device), hookpoints, take)
        values, at, columns = (np.concatenate(one) for one in zip(*found, strict=True))
        return sparse.csr_matrix((values.astype(np.float64), (at, columns)), shape=shape)

    before = sparse.csr_matrix(shape)
    after = sparse.csr_matrix(shape)
    at_once = max(1, BATCH_TOKENS // len(wild_type))
    parts = [range(i, min(i + at_once, len(singles))) for i in range(0, len(singles), at_once)]
    for part in progress(parts, "features"):
        before = before + read(texts[:1], [(row, 0, own[row]) for row in part])
        after = after + read([texts[row + 1] for row in part], [(row, i, own[row]) for i, row in enumerate(part)])
    return before, after


def _most(singles, places: Sequence[Site], before, after) -> tuple[tuple[str, int, int, float, float], ...]:
    change, rows = (after - before).tocsr(), []
    keys = _keys(places)
    for i, variant in enumerate(singles):
        row = change[i]
        for column in row.indices[np.argsort(-np.abs(row.data), kind="stable")[:SHOWN]]:
            if row[0, column]:
                rows.append((variant.name, *keys(column), float(before[i, column]), float(after[i, column])))
    return tuple(rows)


def _keys(places: Sequence[Site]):
    starts = np.concatenate([[0], np.cumsum([place.n_features for place in places])])

    def key(column: int) -> tuple[int, int]:
        at = int(np.searchsorted(starts, column, side="right")) - 1
        return places[at].layer, int(column - starts[at])

    return key


def _random(subject: Subject, dictionary: Dictionary, wild_type: str, k: int, seed: int) -> Dictionary:
    """Random directions of what the dictionary reads, less its mean over the wild type, as sparse as the dictionary."""
    config = dictionary.config
    means = torch.zeros(config.n_layers, config.d_in, device=subject.device)
    places = list(config.reads)

    def take(index: int, x: torch.Tensor) -> None:
        means[index] = x.flatten(0, 1).mean(0)

    record(subject, subject.tokenize([wild_type]).to(subject.device), places, take)
    return random_directions(subject, dictionary, means, config.n_features, k, seed)


def _exchanges(effects, sites, residues, rng: np.random.Generator) -> np.ndarray:
    """float64 `[PERMUTATIONS, variants]`: the effect that the same residue has at another site, all sites exchanged
    at once; NaN where it was not measured there."""
    names, place = np.unique(sites, return_inverse=True)
    table = np.full((len(names), len(RESIDUES)), np.nan)
    table[place, residues] = effects
    return np.stack([table[rng.permutation(len(names))[place], residues] for _ in range(PERMUTATIONS)])


def _judged(
    change: sparse.csr_matrix, places: Sequence[Site], effects: np.ndarray, sites: np.ndarray, held: np.ndarray,
    exchanged: np.ndarray, settings: ScanSettings,
) -> Judged:  # fmt: skip
    there = change[~held].tocsc()
    columns = np.flatnonzero(np.diff(there.indptr) >= CHANGED)
    parts = np.array_split(columns, 1 + len(columns) // 2_000)
    rho = np.concatenate([_rank_correlations(there[:, part].toarray(), effects[~held]) for part in parts])
    order = np.argsort(-np.abs(np.nan_to_num(rho)), kind="stable")[:TOP]
    kept, chosen = columns[order], rho[order]
    weights = np.nan_to_num(chosen)
    turned = change[:, kept].toarray() * np.sign(weights)
    spread = turned[~held].std(0)
    together = turned / np.where(spread > 0, spread, 1.0) @ np.abs(weights)
    every = np.column_stack([turned, together])[held]
    at = [(int(site),) for site in sites[held]]
    named = {str(i): values for i, values in enumerate(every.T)}
    draws = spearmans(named, effects[held], at, np.ones(len(at), dtype=bool), settings)
    observed = np.asarray([draws[str(i)][0] for i in range(every.shape[1])])
    null = np.stack(
        [_rank_correlations(every[known], one[known]) for one in exchanged if (known := np.isfinite(one)).any()]
    )
    p = p_values(observed, np.nan_to_num(null))
    tested = np.isfinite(p[:-1])
    q = np.full(len(kept), np.nan)
    if tested.any():
        q[tested] = q_values(p[:-1][tested], np.ones(int(tested.sum()), dtype=bool), len(kept))
    key = _keys(places)
    stacked = np.stack([draws[str(i)] for i in range(len(kept))]) if len(kept) else np.zeros((0, 1))
    return Judged(
        tuple(key(column) for column in kept), chosen, stacked, p[:-1], q, draws[str(len(kept))], float(p[-1])
    )


def _rank_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman of every column of `x [n, m]` with `y [n]`; NaN of a constant one."""
    a, b = rankdata(x, axis=0), rankdata(y)
    a, b = a - a.mean(0), b - b.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b[:, None]).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum())

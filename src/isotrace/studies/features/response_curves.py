"""Response curves: does a feature follow a number of its atom, and by which formula?

1. curve    mean activation in 30 quantile bins of the number, on the molecules that chose nothing, with a bootstrap
            band over molecules
2. null     variance of the bins' means with numbers exchanged among molecules of like length and turned; p, and q over
            all curves of a source
3. formula  eight templates by BIC (`templates`); named only where q < 0.05 and the best beats the next by 10

A named template is the shortest description among eight, no mechanism. Numbers are of the atom a token writes: partial
charge, share in logP, bonds to the nearest ring, degree, place in the string. Features (neurons) and their number are
chosen on the other half of the scaffolds: those with the largest share of variance between bins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import binomtest

from isotrace.annotation.nulls.permutation import Tracks
from isotrace.annotation.nulls.sources import Site, dictionary_sites, encoded, neuron_sites
from isotrace.base.errors import InputError
from isotrace.dictionaries.saving import load_dictionary
from isotrace.domains.domain import Reading, domain_of
from isotrace.stats.bootstrap import bootstrap_weights, intervals
from isotrace.stats.permutation import p_values, q_values
from isotrace.stats.splits import deal
from isotrace.studies.features.graded_labelers import TABLES, crippen, gasteiger
from isotrace.studies.features.templates import TEMPLATES, ahead, fit, named
from isotrace.studies.study import Line, Outcome, Plot, Setting, bundled_table, study
from isotrace.subjects.subject import Subject, load_subject

SUBJECT, DICTIONARY = "bundled:molm", "bundled:molm-clt"
BINS, DRAWS, ALPHA, MIN_DENSITY, SHOWN = 30, 200, 0.05, 0.01, 6
Number = Callable[[Reading], np.ndarray]


def ring_distance(reading: Reading) -> np.ndarray:
    """Bonds to the nearest ring atom, 0 in one; NaN without a ring."""
    from rdkit import Chem

    mol = reading.parsed
    ring = [atom.GetIdx() for atom in mol.GetAtoms() if atom.IsInRing()]
    far = np.asarray(Chem.GetDistanceMatrix(mol))
    return far[:, ring].min(1) if ring else np.full(mol.GetNumAtoms(), np.nan)


NUMBERS: dict[str, Number] = {
    "Gasteiger charge": gasteiger,
    "logP share": crippen,
    "bonds to the nearest ring": ring_distance,
    "place in the string": lambda reading: np.arange(reading.n_elements) / reading.n_elements,
}


@dataclass(frozen=True, eq=False)
class Curve:
    """Of one unit and one number: `x`, `y`, `low`, `high` `[bins]`, `p` against exchanged numbers."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: float


def bins(x: np.ndarray, n: int = BINS) -> np.ndarray:
    """int64 `[n]`: the quantile bin of each; equal numbers share one, so that there may be fewer than `n`."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, n + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, x, side="left"), return_inverse=True)[1]


def between(y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Share of the variance of `y [n, units]` that lies between the bins `at [n]`, `[units]`; 0 for a constant."""
    size = np.bincount(at).astype(np.float64)
    sums = sparse.csr_matrix((np.ones(len(at)), (at, np.arange(len(at)))), shape=(len(size), len(at))) @ y
    total = ((y - y.mean(0)) ** 2).sum(0)
    return ((sums / size[:, None] - y.mean(0)) ** 2 * size[:, None]).sum(0) / np.where(total > 0, total, np.inf)


def exchanged(ptr: np.ndarray, n: int, seed: int) -> np.ndarray:
    """int64 `[n, atoms]`: where each atom's number comes from, sequences of like length exchanged and turned."""
    tracks = Tracks.of(ptr, np.zeros(int(ptr[-1]), dtype=bool))
    return np.stack([tracks.source(seed, i) for i in range(n)])


def curves(y: np.ndarray, x: np.ndarray, ptr: np.ndarray, sources: np.ndarray, seed: int) -> list[Curve]:
    """Of `y [atoms, units]` against `x [atoms]`, atoms of sequence s being ptr[s] … ptr[s + 1]; `sources`: see
    `exchanged`."""
    at, owner = bins(x), np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    observed = between(y, at)
    p = p_values(observed, np.stack([between(y, at[source]) for source in sources]))
    n_bins, n = int(at.max()) + 1, len(ptr) - 1
    cell = at * n + owner
    count = np.bincount(cell, minlength=n_bins * n).reshape(n_bins, n)
    weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, DRAWS, (seed, 1))])
    centre = np.bincount(at, x) / np.bincount(at)
    found = []
    for unit in range(y.shape[1]):
        total = np.bincount(cell, y[:, unit], minlength=n_bins * n).reshape(n_bins, n)
        with np.errstate(invalid="ignore"):
            means = (weights @ total.T) / (weights @ count.T)
        low, high = intervals(means[1:])
        found.append(Curve(centre, means[0], low, high, float(p[unit])))
    return found


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms of molecules of one half: `x` by name float64 `[atoms]`, `y` float32 `[atoms, units]`, `ptr`."""

    x: dict[str, np.ndarray]
    y: np.ndarray
    ptr: np.ndarray

    def known(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(y, x, ptr) of the molecules of which the number is known for every atom."""
        owner = np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))
        lacks = np.bincount(owner, np.isnan(self.x[name]), minlength=len(self.ptr) - 1) > 0
        keep = ~lacks[owner]
        return self.y[keep], self.x[name][keep], np.concatenate([[0], np.cumsum(np.diff(self.ptr)[~lacks])])


def atoms_of(readings: list[Reading], activations: list[sparse.csr_matrix]) -> Atoms:
    """The largest activation of the tokens that write an atom."""
    rows, ptr = [], [0]
    for reading, matrix in zip(readings, activations, strict=True):
        dense, own = matrix.toarray(), np.zeros((reading.n_elements, matrix.get_shape()[1]), dtype=np.float32)
        for i, written in enumerate(reading.elements):
            for element in written:
                own[element] = np.maximum(own[element], dense[i])
        rows.append(own)
        ptr.append(ptr[-1] + len(own))
    x = {name: np.concatenate([number(reading) for reading in readings]) for name, number in NUMBERS.items()}
    return Atoms(x, np.concatenate(rows), np.asarray(ptr))


def source_rows(
    name: str, choosing: Atoms, reporting: Atoms, n_units: int, n_shuffles: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]], list[tuple[str, Curve]]]:
    """(summary, a row per curve, the curves with their titles)."""
    rows, drawn, without = [], [], 0
    for what in NUMBERS:
        y, x, _ = choosing.known(what)
        dense = np.flatnonzero((y > 0).mean(0) >= MIN_DENSITY)
        best = dense[np.argsort(-between(y[:, dense], bins(x)), kind="stable")[:n_units]]
        y, x, ptr = reporting.known(what)
        for unit, curve in zip(best, curves(y[:, best], x, ptr, exchanged(ptr, n_shuffles, seed), seed), strict=True):
            try:
                fits = fit(curve.x, curve.y)
            except InputError:  # never active here, or a number of too few values
                without += 1
                continue
            rows.append({
                "source": name, "number": what, "unit": int(unit), "bins": len(curve.x), "p": curve.p,
                "template": fits[0].template.name, "formula": fits[0].template.formula, "r2": fits[0].r2,
                "ahead": ahead(fits)[0], "next": ahead(fits)[1], "named": named(fits),
            })  # fmt: skip
            drawn.append((f"{name} {unit}, {what}", curve))
    p = np.asarray([row["p"] for row in rows])
    q = q_values(p, np.ones(len(p), dtype=bool), len(p)) if len(p) else p
    for row, value in zip(rows, q, strict=True):
        row |= {"q": float(value), "named": row["named"] if value < ALPHA else None}
    summary: dict[str, Any] = {"source": name, "curves": len(rows), "without": without}
    for key, hits in (("follows", q < ALPHA), ("named", np.asarray([row["named"] is not None for row in rows]))):
        exact = binomtest(int(hits.sum()), len(rows)).proportion_ci(method="exact")
        summary |= {key: float(hits.mean()), f"{key}_ci": (float(exact.low), float(exact.high))}
    summary |= {t.name: sum(row["named"] == t.name for row in rows) for t in TEMPLATES if t.shape is not None}
    return summary, rows, drawn


def molecules(subject: Subject, n: int, seed: int) -> list[Reading]:
    """`n` random molecules of the bundled tables of at most 60 characters."""
    texts, domain = sorted({text for name in TABLES for text in bundled_table(name)["smiles"]}), domain_of("molecule")
    found = []
    for i in np.random.default_rng((seed, 3)).permutation(len(texts)):
        if len(found) == n:
            break
        try:
            batch = subject.tokenize([texts[i]])
            reading = domain.read(texts[i], subject.tokens(batch.ids[0]), batch.offsets[0])
        except InputError:
            continue
        found += [reading] if len(texts[i]) <= 60 and reading.n_elements > 4 else []
    return found


@study("response_curves", "molm: which features follow a number of their atom, and by which of eight formulas")
def response_curves(setting: Setting) -> Outcome:
    n, n_units, n_shuffles = (600, 10, 200) if setting.quick else (2_000, 40, 1_000)
    subject = load_subject(SUBJECT)
    dictionary = load_dictionary(DICTIONARY, subject)
    readings = molecules(subject, n, setting.seed)
    half = deal(domain_of("molecule").groups([r.text for r in readings]), (0.5, 0.5), setting.seed)
    layer = dictionary.config.layers[len(dictionary.config.layers) // 2]
    sites: dict[str, list[Site]] = {
        "features": [s for s in dictionary_sites("dictionary", dictionary) if s.layer == layer],
        "neurons": neuron_sites(subject, [layer]),
    }
    tables: dict[str, list[dict[str, Any]]] = {"sources": [], "curves": []}
    plots = []
    for name, own in setting.progress(list(sites.items()), "response curves"):
        halves = []
        for side in (0, 1):
            chosen = [r for r, h in zip(readings, half, strict=True) if h == side]
            halves.append(atoms_of(chosen, encoded(subject, own, [r.text for r in chosen])))
        summary, rows, drawn = source_rows(name, halves[0], halves[1], n_units, n_shuffles, setting.seed)
        tables["sources"].append(summary)
        tables["curves"] += rows
        best = [i for i, row in enumerate(rows) if row["named"] is not None]
        for i in sorted(best, key=lambda i: -rows[i]["ahead"])[: SHOWN // 2]:
            title, curve = drawn[i]
            shape = fit(curve.x, curve.y)[0]
            lines = (
                Line("mean activation", curve.x.tolist(), curve.y.tolist(), curve.low.tolist(), curve.high.tolist()),
                Line(shape.template.name, curve.x.tolist(), shape.fitted.tolist()),
            )
            plots.append(Plot(title, rows[i]["number"], "activation", lines, shape.template.formula))
    return Outcome(tables, (verdict(tables["sources"], layer), NOTE), tuple(plots))


NOTE = (
    "Curves of molecules that chose nothing; units chosen on the others by the share of variance between bins. "
    "follows: q < 0.05 against numbers exchanged among molecules of like length. named: that, and a BIC ahead of the "
    "next template by 10 that does not hold it as a special case. A template describes 30 means, it is no mechanism. "
    "without: pairs that give fewer than 10 different bins, which have no curve."
)


def verdict(sources: list[dict[str, Any]], layer: int) -> str:
    said = []
    for row in sources:
        low, high = row["named_ci"]
        said.append(
            f"of {row['curves']} curves of {row['source']} {row['follows']:.2f} follow their number and "
            f"{row['named']:.2f} [{low:.2f}, {high:.2f}] have a formula"
        )
    return f"Layer {layer}: {'; '.join(said)}."

"""What a feature has to do with the structure under the tokens: atoms and bonds, residues and the chain.

An element's activation is the largest one of the tokens that write it.

Moran's I (Moran 1950) of feature f, pooled over sequences s with n_s elements x_si and the bonds of `Domain.bonds`:

    I = (N / W) · Σ_s Σ_ij w_ij z_si z_sj / Σ_s Σ_i z_si²      z_si = x_si − mean_i x_si

w_ij = 1 for the two directions of a bond and 0 elsewhere, N = Σ n_s, W = Σ w. Near 1 the feature fires on neighbours
together, below its null it keeps them apart. The null is exact: with values permuted inside each sequence, mean and
variance of every quadratic form follow from the moments of its values (Cliff and Ord 1981, randomisation; one
sequence gives −1 / (n − 1)).

Spelling stability: the share of elements where a feature that fired there still fires when the same thing is written
differently, beside the share expected if it fired on as many random elements of the same thing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy import sparse

from isotrace.base.errors import InputError
from isotrace.domains.domain import Domain, Reading, Spelling

BLOCK_ENTRIES = 1_000_000  # activations at a time
TOGETHER = 64  # sequences that are encoded with all their spellings
Elements = Sequence[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Moran:
    """float64 `[F]`; NaN for a feature that is the same on all elements of every sequence that has a bond.

    value: Moran's I; null, sd: its mean and standard deviation with values permuted inside each sequence.
    """

    value: np.ndarray
    null: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True, eq=False)
class Stability:
    """float64 `[F]`; NaN for a feature that never fires on an element of a sequence with another spelling.

    value: share of (spelling, element) where it fires again; null: that of random elements. n_spellings were compared,
    n_refused could not be read.
    """

    value: np.ndarray
    null: np.ndarray
    n_spellings: int
    n_refused: int


def morans_i(
    activations: sparse.csr_matrix,
    elements: Sequence[Elements],
    bonds: Sequence[np.ndarray],
    sequence_ptr: np.ndarray,
) -> Moran:
    """Of every feature of CSR `[tokens, F]`, never negative; sequence s has the tokens sequence_ptr[s] … [s + 1].

    elements[s]: `Reading.elements`; bonds[s]: `Domain.bonds`, each pair once. Sequences without a bond are left out.
    """
    n_features = activations.get_shape()[1]
    quadratic, squares, mean, variance = np.zeros((4, n_features))
    n_elements = n_weights = 0
    used = [s for s, pairs in enumerate(bonds) if len(pairs)]
    for block in _blocks(used, activations.indptr[sequence_ptr]):
        sizes = np.asarray([_count(elements[s], bonds[s]) for s in block])
        starts = np.concatenate([[0], np.cumsum(sizes)])
        pairs = np.concatenate([np.asarray(bonds[s]) + start for s, start in zip(block, starts, strict=False)])
        x = _on_elements(activations, [(sequence_ptr[s], elements[s]) for s in block], starts)
        ends = np.concatenate([pairs, pairs[:, ::-1]]).T
        neighbours = sparse.csr_matrix((np.ones(len(ends[0])), (ends[0], ends[1])), shape=(starts[-1], starts[-1]))
        owner = np.repeat(np.arange(len(block)), sizes)
        degree = np.bincount(ends[0], minlength=starts[-1]).astype(np.float64)
        n_elements += int(starts[-1])
        n_weights += int(degree.sum())
        quadratic += np.asarray(x.multiply(neighbours @ x).sum(axis=0)).ravel()

        # Sums over one feature on one sequence, for those that are not all zero.
        row = np.repeat(np.arange(starts[-1]), np.diff(x.indptr))
        key, part = np.unique(owner[row] * n_features + x.indices, return_inverse=True)
        s, feature = np.divmod(key, n_features)
        p1, p2, p3, p4 = (np.bincount(part, x.data**k, minlength=len(key)) for k in (1, 2, 3, 4))
        n = sizes[s].astype(np.float64)
        m = p1 / n
        z2 = p2 - p1 * m
        varies = z2 > 1e-10 * p2  # below, the same value everywhere but for rounding
        z2 = np.where(varies, z2, 0.0)
        z4 = np.where(varies, p4 - 4 * m * p3 + 6 * m**2 * p2 - 3 * n * m**4, 0.0)
        by_degree = np.bincount(part, x.data * degree[row], minlength=len(key))
        weights, paths = (np.bincount(owner, degree**k) for k in (1, 2))
        edges, paths = weights[s] / 2, (paths - weights)[s]
        centre = m**2 * weights[s] - 2 * m * by_degree
        expected = -2 * edges * _share(z2, n * (n - 1))
        # Two edges are the same, share an element, or have none in common.
        second = 4 * (
            edges * _share(z2**2 - z4, n * (n - 1))
            + paths * _share(2 * z4 - z2**2, n * (n - 1) * (n - 2))
            + (edges**2 - edges - paths) * _share(3 * z2**2 - 6 * z4, n * (n - 1) * (n - 2) * (n - 3))
        )
        add = lambda values, feature=feature: np.bincount(feature, values, minlength=n_features)  # noqa: E731
        quadratic, squares, mean = quadratic + add(centre), squares + add(z2), mean + add(expected)
        variance += add(second - expected**2)
    scale = n_elements / max(n_weights, 1) / np.where(squares > 0, squares, np.nan)
    return Moran(quadratic * scale, mean * scale, np.sqrt(np.maximum(variance, 0)) * scale)


def stability(
    encode: Callable[[list[str]], list[sparse.csr_matrix]],
    read: Callable[[str], Reading],
    domain: Domain,
    readings: Iterable[Reading],
    *,
    n_spellings: int,
    seed: int,
) -> Stability:
    """encode: activations CSR `[tokens, F]` of each text; read: the reading of a text, InputError if there is none."""
    fired = again = expected = np.zeros(0)
    compared = refused = 0
    waiting = iter(readings)
    while part := [*islice(waiting, TOGETHER)]:
        spelled: list[tuple[Reading, list[tuple[Spelling, Reading]]]] = []
        for reading in part:
            others = []
            for spelling in domain.spellings(reading, n_spellings, seed):
                try:
                    others.append((spelling, read(spelling.text)))
                except InputError:
                    refused += 1
            if others:
                spelled.append((reading, others))
        texts = [text for reading, others in spelled for text in (reading.text, *(s.text for s, _ in others))]
        every = iter(encode(texts))
        for reading, others in spelled:
            n = reading.n_elements
            before = _fires(next(every), reading, range(n), n)
            if not compared:
                fired, again, expected = np.zeros((3, before.get_shape()[1]))
            total = _sum(before)
            for spelling, other in others:
                after = _fires(next(every), other, spelling.original, n)
                fired += total
                again += _sum(before.multiply(after))
                expected += total * _sum(after) / n
                compared += 1
    some = np.where(fired > 0, fired, np.nan)
    return Stability(again / some, expected / some, compared, refused)


def _fires(activations: sparse.csr_matrix, reading: Reading, original: Sequence[int], n: int) -> sparse.csr_matrix:
    """1 where a feature fires, `[n, F]`; element i of the reading is row original[i]."""
    x = _on_elements(activations, [(0, reading.elements)], np.asarray([0, reading.n_elements]))
    x.eliminate_zeros()
    rows = np.asarray(original)[np.repeat(np.arange(reading.n_elements), np.diff(x.indptr))]
    return sparse.csr_matrix((np.ones(len(rows)), (rows, x.indices)), shape=(n, x.get_shape()[1]))


def _on_elements(
    activations: sparse.csr_matrix, parts: Sequence[tuple[int, Elements]], starts: np.ndarray
) -> sparse.csr_matrix:
    """float64 CSR: the largest activation over an element's tokens; `parts` are (first token, elements by token), and
    element i of part k becomes row starts[k] + i."""
    links = [
        (first + token, start + element)
        for (first, elements), start in zip(parts, starts, strict=False)
        for token, of in enumerate(elements)
        for element in of
    ]
    tokens, rows = np.asarray(links, dtype=np.int64).reshape(-1, 2).T
    chosen, n_features = activations[tokens], activations.get_shape()[1]
    key = np.repeat(rows, np.diff(chosen.indptr)) * n_features + chosen.indices
    order = np.argsort(key, kind="stable")
    first = np.flatnonzero(np.diff(key[order], prepend=-1))
    data = np.maximum.reduceat(chosen.data[order], first) if len(first) else chosen.data
    where = np.divmod(key[order][first], n_features)
    return sparse.csr_matrix((data.astype(np.float64), where), shape=(int(starts[-1]), n_features))


def _blocks(sequences: Sequence[int], ends: np.ndarray) -> Iterable[list[int]]:
    block, size = [], 0
    for s in sequences:
        entries = int(ends[s + 1] - ends[s])
        if block and size + entries > BLOCK_ENTRIES:
            yield block
            block, size = [], 0
        block.append(s)
        size += entries
    if block:
        yield block


def _count(elements: Elements, bonds: np.ndarray) -> int:
    """As `Reading.n_elements`, and not fewer than the bonds speak of."""
    return 1 + max(max((e for part in elements for e in part), default=-1), int(np.max(bonds)))


def _share(total: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Mean over `number` choices; 0 where there are none, as their count then is."""
    return np.divide(total, number, out=np.zeros_like(total), where=number > 0)


def _sum(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=0)).ravel()

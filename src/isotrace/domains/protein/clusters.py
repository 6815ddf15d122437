"""Groups of related proteins: the connected components of sequences that share k-mers.

Two sequences are linked when the distinct 5-mers they share are at least a tenth of those of the one with fewer, and
at least three (or half of them, where it has fewer than six). Unrelated sequences of 300 residues share 0.03 of 300
by chance; substitutions spread evenly leave a tenth intact down to an identity of 0.63 (0.1 = 0.63⁵). k-mers of
purification tags, cleavage sites and linkers (`TAGS`) do not count: they say how a protein was made, not what it is.

1. Every sequence becomes the set of its distinct k-mers (a sparse row).
2. Each k-mer links its sequences to the richest of them; k-mers counted so are a lower bound on those shared, so a
   link that passes the threshold here is true (the idea of Linclust, Steinegger and Söding 2018). This joins large
   families at a cost linear in the data.
3. k-mers whose sequences are all joined by now cannot tell anything new and are dropped; the rest are compared over
   all pairs of different components, in blocks of rows. Nothing is missed: the result equals all-against-all.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

K = 5
SHARE = 0.1
LEAST = 3
# Hexahistidine with thrombin site, with TEV site, at the C-terminus; Strep-tag II; FLAG; myc; HA; T7; S; linkers.
TAGS = (
    *("MGSSHHHHHHSSGLVPRGSHMAS", "MHHHHHHSSGVDLGTENLYFQSNAM", "MGSDKIHHHHHHENLYFQGH", "MRGSHHHHHHGS"),
    *("MGSSHHHHHHSSGRENLYFQGHM", "MGSSHHHHHHSQDPENLYFQGS", "LEHHHHHHHHHH", "MAHHHHHHSSGLEVLFQGP", "GSSGSSGSGPSSG"),
    *("MAHHHHHHMGTLEAQTQGPGSM", "MHHHHHHGKPIPNPLLGLDSTENLYFQGIDPFTM"),
    *("SAWSHPQFEK", "DYKDDDDK", "EQKLISEEDL", "YPYDVPDYA", "MASMTGGQQMGR", "KETAAAKFERQHMDS", "GGGGSGGGGSGGSGGS"),
)
_BLOCK = 256
_BASE = 32


def kmer_groups(sequences: Sequence[str]) -> list[str]:
    """A name per sequence, equal for those in one component; it is made from the first member in the alphabet, so
    neither order nor other groups change it."""
    return component_names(sequences, _components(_kmers(sequences)))


def component_names(sequences: Sequence[str], labels: np.ndarray) -> list[str]:
    """Name of each component (int `[n]`): a hash of its alphabetically first sequence."""
    first: dict[int, str] = {}
    for label, sequence in zip(labels.tolist(), sequences, strict=True):
        first[label] = min(first.get(label, sequence), sequence)
    names = {label: hashlib.sha256(sequence.encode()).hexdigest()[:12] for label, sequence in first.items()}
    return [names[label] for label in labels.tolist()]


def components_of(pairs: np.ndarray, n: int) -> np.ndarray:
    """int32 `[n]`: connected component of each of `n` things linked by `pairs` (int `[pairs, 2]`)."""
    graph = sparse.coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _kmers(sequences: Sequence[str]) -> sparse.csr_array:
    """float32 `[sequences, distinct k-mers]` of ones. A sequence shorter than K has itself as its only k-mer, one
    that is nothing but tags keeps theirs."""
    tags = np.unique(np.concatenate([_windows(tag) for tag in TAGS]))
    rows = []
    for sequence in sequences:
        every = np.unique(_windows(sequence))
        own = every[~np.isin(every, tags, assume_unique=True)]
        rows.append(own if len(own) else every)
    sizes = [0, *map(len, rows)]
    columns, index = np.unique(np.concatenate(rows), return_inverse=True)
    shape = (len(rows), len(columns))
    return sparse.csr_array((np.ones(len(index), dtype=np.float32), index, np.cumsum(sizes)), shape=shape)


def _windows(sequence: str) -> np.ndarray:
    """int64: the k-mer at each start, as a number in base 32 of its letters."""
    letters = np.frombuffer(sequence.ljust(K, "@").encode(), dtype=np.uint8).astype(np.int64) - ord("@")
    return np.lib.stride_tricks.sliding_window_view(letters, K) @ (_BASE ** np.arange(K))


def _needed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    fewer = np.minimum(a, b)
    return np.maximum(np.ceil(SHARE * fewer), np.minimum(LEAST, np.ceil(fewer / 2)))


def _components(shared: sparse.csr_array) -> np.ndarray:
    sizes = np.diff(shared.indptr)
    n = len(sizes)
    order = np.argsort(-sizes, kind="stable")
    by_kmer = sparse.csc_array(shared[order])
    by_kmer.sort_indices()
    # In the order of size, the first member of a column is the richest.
    centre = np.repeat(by_kmer.indices[by_kmer.indptr[:-1]], np.diff(by_kmer.indptr)).astype(np.int64)
    pair, votes = np.unique(centre * n + by_kmer.indices, return_counts=True)
    a, b = order[pair // n], order[pair % n]
    kept = votes >= _needed(sizes[a], sizes[b])
    found = components_of(np.stack([a[kept], b[kept]], axis=1), n)

    columns = sparse.csc_array(shared)
    label = found[columns.indices]
    start = columns.indptr[:-1]
    open_ = np.maximum.reduceat(label, start) != np.minimum.reduceat(label, start)
    rest = sparse.csr_array(columns[:, np.flatnonzero(open_)])
    transposed = sparse.csr_array(rest.T)
    links = [np.zeros((0, 2), dtype=np.int64)]
    for first in range(0, n, _BLOCK):
        block = (rest[first : first + _BLOCK] @ transposed).tocoo()
        i, j = block.row.astype(np.int64) + first, block.col.astype(np.int64)
        kept = (i < j) & (found[i] != found[j]) & (block.data >= _needed(sizes[i], sizes[j]))
        links.append(np.stack([i[kept], j[kept]], axis=1))
    joined = found[np.concatenate(links)]
    return components_of(joined, n)[found] if len(joined) else found

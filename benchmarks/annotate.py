"""Counting all features against all concepts: ours, and one concept and threshold at a time as InterPLM does.

    python benchmarks/annotate.py --features 10000 --concepts 500 --tokens 1000000 --permutations 20 [--json]
    python benchmarks/annotate.py --features 500 --concepts 20 --tokens 20000 --whole

The input is synthetic: features of Zipf-like density, about 28 active per token, a fifth of them tied to a concept;
concepts of Zipf-like frequency, about 17 per token, in instances of 1 to 30 tokens that do not overlap within a concept
(InterPLM keeps one instance number per token and concept); sequences of 20 to 200 tokens.

Ours is thresholds, levels, counts of tokens and of instances touched, both F1s, and the best feature and threshold of
every concept. The other is given the thresholds and the dense activations or their CSR for nothing, and only counts
(hits, false positives, instances touched): by shards of tokens and chunks of features, and for each threshold and
concept over whole arrays, as published (Simon and Zou 2025). `dense` works on dense arrays, `sparse` on SciPy's.
It runs on some concepts and one chunk of features of typical density, and its time is scaled in proportion to both;
`--whole` runs it on everything. Counts must be the same. Rounds are interleaved; the ratio is taken within a round.
"""

import argparse
import json
import resource
import time
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse

from isotrace.annotation.nulls import permutation
from isotrace.annotation.scores import counting
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import Concept

QUANTILES = (0.0, 0.5, 0.75, 0.9)
ACTIVE, CARRIED = 28, 17  # features and concepts per token
LONGEST = 30
CHUNK, SHARD = 250, 20_000  # features and tokens InterPLM looks at at a time
NULL_TOKENS = 200_000


def shares(n: int, total: float, largest: float) -> np.ndarray:
    """float64 `[n]`, falling like 1 / (rank + 10), none above `largest`, that sum to about `total`."""
    wanted = 1 / (np.arange(n) + 10)
    return np.minimum(wanted * total / wanted.sum(), largest)


def make_concepts(rng: np.random.Generator, n: int, n_tokens: int) -> ConceptTable:
    lengths = rng.integers(20, 201, n_tokens // 20)
    ends = np.minimum(np.cumsum(lengths), n_tokens)
    sequence_ptr = np.concatenate([[0], ends[: np.searchsorted(ends, n_tokens) + 1]])
    n_instances, sizes, tokens = [], [], []
    for c, share in enumerate(shares(n, min(CARRIED, n / 10), 0.4)):
        longest = 1 if c % 3 == 0 else LONGEST
        spread = share / (1 - share) * 2 / (longest + 1)
        start = np.unique(rng.integers(0, n_tokens, int(n_tokens * spread) + 1))
        size = rng.integers(1, longest + 1, len(start))
        end = np.minimum(
            sequence_ptr[np.searchsorted(sequence_ptr, start, side="right")], np.append(start[1:], n_tokens)
        )
        size = np.minimum(size, end - start)
        n_instances.append(len(start))
        sizes.append(size)
        tokens.append((np.repeat(start - np.cumsum(size) + size, size) + np.arange(size.sum())).astype(np.int32))
    return ConceptTable(
        sequence_ptr,
        tuple(Concept(f"concept {c}", "synthetic", "token") for c in range(n)),
        np.concatenate([[0], np.cumsum(n_instances)]),
        np.concatenate([[0], np.cumsum(np.concatenate(sizes))]),
        np.concatenate(tokens),
        (),
        np.zeros((len(sequence_ptr) - 1, 0)),
    )


def make_activations(rng: np.random.Generator, n_features: int, table: ConceptTable) -> sparse.csr_matrix:
    n_tokens, n_concepts = table.n_tokens, len(table.token_concepts)
    bounds = table.instance_ptr[table.concept_ptr]
    active = []
    for f, share in enumerate(shares(n_features, min(ACTIVE, n_features / 10), 0.5)):
        found = rng.integers(0, n_tokens, int(-np.log(1 - share) * n_tokens) + 1)
        if f % 5 == 0:
            concept = rng.integers(n_concepts)
            found[: len(found) // 2] = rng.choice(table.tokens[bounds[concept] : bounds[concept + 1]], len(found) // 2)
        active.append(np.unique(found).astype(np.int32))
    indptr = np.concatenate([[0], np.cumsum([len(a) for a in active])])
    values = rng.gamma(2.0, 1.0, indptr[-1]).astype(np.float32) + np.float32(1e-3)
    return sparse.csc_matrix((values, np.concatenate(active), indptr), shape=(n_tokens, n_features)).tocsr()


def ours(activations: sparse.csr_matrix, table: ConceptTable) -> tuple[counting.Counts, dict, np.ndarray]:
    """Counts, seconds of each step, thresholds."""
    marks = [time.perf_counter()]
    levels = counting.thresholds(activations, QUANTILES)
    marks.append(time.perf_counter())
    firing = counting.fire(activations, levels)
    marks.append(time.perf_counter())
    counts = counting.count(firing, table)
    marks.append(time.perf_counter())
    for f1 in (counting.token_f1, counting.interplm_f1):
        f1(counts).reshape(len(table.token_concepts), -1).argmax(axis=1)
    marks.append(time.perf_counter())
    return counts, dict(zip(("thresholds", "fire", "count", "f1"), np.diff(marks), strict=True)), levels


def instance_numbers(table: ConceptTable, concepts: np.ndarray) -> np.ndarray:
    """int32 `[tokens, concepts]`: the instance a token is in, from 1; 0 without."""
    numbers = np.zeros((table.n_tokens, len(concepts)), dtype=np.int32)
    for column, c in enumerate(concepts):
        first, last = table.concept_ptr[c], table.concept_ptr[c + 1]
        bounds = table.instance_ptr[first : last + 1]
        numbers[table.tokens[bounds[0] : bounds[-1]], column] = np.repeat(np.arange(last - first) + 1, np.diff(bounds))
    return numbers


def dense_counts(values: np.ndarray, numbers: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None:
    """Adds to out `[3, concepts, features, levels]` what one shard has of hits, false positives, instances touched."""
    for level in range(levels.shape[1]):
        fires = values >= levels[:, level]
        for c in range(numbers.shape[1]):
            number = numbers[:, c, None]
            out[0, c, :, level] += (fires & (number > 0)).sum(axis=0)
            out[1, c, :, level] += (fires & (number == 0)).sum(axis=0)
            touched = fires * number
            out[2, c, :, level] += [np.count_nonzero(np.unique(column)) for column in touched.T]


def sparse_counts(values: sparse.csr_matrix, numbers: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None:
    """The same of CSR `values`."""
    for level in range(levels.shape[1]):
        fires = values.copy()
        fires.data = (values.data >= levels[values.indices, level]).astype(np.int32)
        fires.eliminate_zeros()
        n_fires = np.asarray(fires.sum(axis=0)).ravel()
        for c in range(numbers.shape[1]):
            touched = sparse.csc_matrix(fires.multiply(sparse.csr_matrix(numbers[:, c, None])))
            hits = np.diff(touched.indptr)
            out[0, c, :, level] += hits
            out[1, c, :, level] += n_fires - hits
            columns = np.split(touched.data, touched.indptr[1:-1])
            out[2, c, :, level] += [len(np.unique(column)) for column in columns]


def interplm(method: str, activations: sparse.csc_matrix, numbers: np.ndarray, sequence_ptr: np.ndarray, levels):
    """(counts `[3, concepts, features, levels]`, seconds without the making of chunks)."""
    out, seconds = np.zeros((3, numbers.shape[1], *levels.shape), dtype=np.int64), 0.0
    wanted = np.arange(SHARD, sequence_ptr[-1] + SHARD, SHARD)
    bounds = np.unique(
        np.concatenate([[0], sequence_ptr[np.minimum(np.searchsorted(sequence_ptr, wanted), len(sequence_ptr) - 1)]])
    )
    for first in range(0, len(levels), CHUNK):
        chunk = slice(first, first + CHUNK)
        features = activations[:, chunk].tocsr()
        for start, stop in pairwise(bounds):
            values = features[start:stop] if method == "sparse" else features[start:stop].toarray()
            compute = sparse_counts if method == "sparse" else dense_counts
            started = time.perf_counter()
            compute(values, numbers[start:stop], levels[chunk], out[:, :, chunk])
            seconds += time.perf_counter() - started
    return out, seconds


def gibibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def span(values) -> dict:
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def measure(args) -> dict:
    rng = np.random.default_rng(args.seed)
    table = make_concepts(rng, args.concepts, args.tokens)
    activations = make_activations(rng, args.features, table)
    result = {"features": args.features, "concepts": args.concepts, "tokens": table.n_tokens}
    result |= {"sequences": table.n_sequences, "instances": len(table.instance_ptr) - 1, "active": activations.nnz}
    result |= {"levels": len(QUANTILES), "threads": torch.get_num_threads(), "input_gib": gibibytes()}
    small = slice(0, 2_000)  # compiles
    tokens = activations[small]
    ours(tokens, make_concepts(rng, 3, tokens.shape[0]))

    # Every k-th, so that the frequent and the rare are there as they are in the whole.
    some = np.arange(args.features) if args.whole else np.linspace(0, args.features - 1, CHUNK).astype(int)
    concepts = np.arange(args.concepts)
    if not args.whole:
        concepts = np.linspace(0, args.concepts - 1, args.other_concepts).astype(int)
    scale = args.features / len(some) * args.concepts / len(concepts)
    part, numbers = sparse.csc_matrix(activations[:, some]), instance_numbers(table, concepts)
    totals, steps, peak = [], [], 0.0
    others: dict[str, list[float]] = {method: [] for method in args.methods}
    for _ in range(args.rounds):
        counts, spent, levels = ours(activations, table)
        totals.append(sum(spent.values()))
        steps.append(spent)
        peak = peak or gibibytes()
        hits, touched = counts.hits[np.ix_(concepts, some)], counts.touched[np.ix_(concepts, some)]
        expected = {"hits": hits, "false positives": counts.fired[some] - hits, "instances touched": touched}
        del counts
        for method, times in others.items():
            found, seconds = interplm(method, part, numbers, table.sequence_ptr, levels[some])
            for (name, mine), theirs in zip(expected.items(), found, strict=True):
                if not np.array_equal(mine, theirs):
                    raise SystemExit(f"{name}: ours and InterPLM ({method}) differ.")
            times.append(seconds * scale)
    result |= {"rounds": args.rounds, "ours_s": span(totals), "peak_gib": peak, "scale": scale}
    result["steps_s"] = {name: float(np.median([s[name] for s in steps])) for name in steps[0]}
    result["interplm"] = {
        method: {"s": span(times), "ratio": span(np.asarray(times) / totals), "features": len(some)}
        | {"concepts": len(concepts), "same_counts": True}
        for method, times in others.items()
    }
    if args.permutations:
        result["null"] = permutations(activations, table, levels, args.permutations)
    return result


def permutations(activations: sparse.csr_matrix, table: ConceptTable, levels: np.ndarray, n: int) -> dict:
    """Of the first sequences, up to NULL_TOKENS tokens."""
    table = table.take(np.arange(np.searchsorted(table.sequence_ptr, NULL_TOKENS, side="right") - 1))
    firing, fixed = counting.fire(activations[: table.n_tokens], levels), np.zeros(table.n_tokens, dtype=bool)
    seconds = []
    for n_permutations in (1, 1, n + 1):  # the first compiles
        started = time.perf_counter()
        permutation.null_maxima(firing, table, fixed=fixed, n_permutations=n_permutations, seed=0)
        seconds.append(time.perf_counter() - started)
    each = (seconds[2] - seconds[1]) / n
    setup = seconds[1] - each
    result = {"tokens": table.n_tokens, "permutations": n, "setup_s": setup, "each_s": each}
    return result | {"in_two_minutes": int((120 - setup) / each)}


def report(result: dict) -> None:
    mine = result["ours_s"]
    print(
        f"{result['features']} features × {result['concepts']} concepts × {result['tokens']} tokens × "
        f"{result['levels']} thresholds, {result['active']} activations, {result['instances']} instances, "
        f"{result['threads']} threads"
    )
    print(f"ours: {mine['median']:.2f} s ({mine['min']:.2f}–{mine['max']:.2f}), ", end="")
    print(", ".join(f"{name} {s:.2f}" for name, s in result["steps_s"].items()))
    print(f"peak memory {result['peak_gib']:.2f} GiB, {result['input_gib']:.2f} GiB of it making the input")
    for method, row in result["interplm"].items():
        part = f"{row['features']} features × {row['concepts']} concepts measured, times {result['scale']:.0f}"
        s, ratio = row["s"], row["ratio"]
        print(f"InterPLM, {method}: {s['median']:.0f} s ({part}), same counts, ", end="")
        print(f"{ratio['median']:.0f}× ours ({ratio['min']:.0f}–{ratio['max']:.0f})")
    if "null" in result:
        null = result["null"]
        print(f"permutations of {null['tokens']} tokens: {null['each_s']:.3f} s each, ", end="")
        print(f"{null['in_two_minutes']} in two minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=10_000)
    parser.add_argument("--concepts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--permutations", type=int, default=20, help="timed; 0 leaves them out")
    parser.add_argument("--methods", nargs="*", choices=("dense", "sparse"), default=["dense", "sparse"])
    parser.add_argument("--other-concepts", type=int, default=3, help="that InterPLM's way is measured on")
    parser.add_argument("--whole", action="store_true", help="InterPLM's way on all features and concepts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args)
    if args.json:
        print(json.dumps(result))
    else:
        report(result)


if __name__ == "__main__":
    main()

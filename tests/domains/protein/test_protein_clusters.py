"""Clusters against all-against-all by sets, and clones against a plain double loop."""

import random

import numpy as np
import pytest

from isotrace.domains.protein.clusters import TAGS, kmer_groups
from isotrace.domains.protein.domain import PROTEIN
from isotrace.domains.protein.sequence import STANDARD


def mutated(sequence: str, rate: float, rng: random.Random) -> str:
    return "".join(rng.choice(STANDARD) if rng.random() < rate else a for a in sequence)


def families(seed: int, n_families: int, rate: float) -> list[str]:
    rng = random.Random(seed)
    found = []
    for _ in range(n_families):
        parent = "".join(rng.choices(STANDARD, k=rng.randint(3, 160)))
        found.append(parent)
        for _ in range(rng.randint(0, 6)):
            start = rng.randint(0, len(parent) // 3)
            found.append(mutated(parent[start:], rate, rng) or parent)
    rng.shuffle(found)
    return found


def by_sets(sequences: list[str]) -> list[int]:
    """Components of all pairs, from the definition in the module's docstring."""
    tags = {tag[i : i + 5] for tag in TAGS for i in range(len(tag) - 4)}
    every = [{s[i : i + 5] for i in range(len(s) - 4)} or {s} for s in sequences]
    own = [kmers - tags or kmers for kmers in every]
    label = list(range(len(sequences)))
    for i, a in enumerate(own):
        for j, b in enumerate(own[:i]):
            fewer = min(len(a), len(b))
            if len(a & b) >= max(0.1 * fewer, min(3, fewer / 2)):
                label = [label[j] if x == label[i] else x for x in label]
    return label


def same_partition(a, b) -> bool:
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


@pytest.mark.parametrize(("seed", "rate"), [(0, 0.1), (1, 0.3), (2, 0.37), (3, 0.4)])
def test_groups_equal_all_against_all(seed, rate):
    sequences = families(seed, 40, rate)
    groups = kmer_groups(sequences)
    assert same_partition(groups, by_sets(sequences))
    assert 1 < len(set(groups)) < len(sequences)


def test_links_that_no_shared_centre_shows_are_found():
    """Two families tied by one long hybrid-free chain: every k-mer's richest sequence lies elsewhere."""
    rng = random.Random(5)
    shared = ["".join(rng.choices(STANDARD, k=12)) for _ in range(3)]
    long = ["".join(rng.choices(STANDARD, k=400)) + part for part in shared]
    filler = ["".join(rng.choices(STANDARD, k=30)) for _ in range(2)]
    pair = [filler[0] + shared[0] + shared[1] + shared[2], shared[0] + shared[1] + shared[2] + filler[1]]
    sequences = [*long, *pair]
    groups = kmer_groups(sequences)
    assert groups[3] == groups[4]
    assert same_partition(groups, by_sets(sequences))


def test_order_and_company_do_not_change_names():
    sequences = families(7, 20, 0.2)
    named = dict(zip(sequences, kmer_groups(sequences), strict=True))
    turned = [*sequences[::-1], "WWWWWWWWWWCCCCCCCCCC"]
    assert {s: g for s, g in zip(turned, kmer_groups(turned), strict=True) if s in named} == named


def test_purification_tags_do_not_join_strangers():
    rng = random.Random(11)
    strangers = ["MGSSHHHHHHSSGLVPRGSHM" + "".join(rng.choices(STANDARD, k=60)) for _ in range(5)]
    assert len(set(PROTEIN.groups(strangers))) == 5
    assert len(set(PROTEIN.groups(["HHHHHH", "HHHHHH", "HHHHHHH"]))) == 1


def test_one_deep_mutational_scan_is_one_group():
    rng = random.Random(3)
    parent = "".join(rng.choices(STANDARD, k=60))
    variants = [parent[:i] + a + parent[i + 1 :] for i in range(60) for a in STANDARD]
    assert len(set(PROTEIN.groups(variants))) == 1
    assert np.unique(PROTEIN.groups([*variants, "".join(rng.choices(STANDARD, k=60))])).size == 2

"""Whole groups are dealt out by share, the same text always falls on the same side."""

import numpy as np
import pytest

from isotrace.base.errors import InputError
from isotrace.stats.splits import by_hash, deal

HALVES = (0.5, 0.5)


@pytest.mark.parametrize("shares", [HALVES, (0.5, 0.25, 0.25)], ids=["two", "three"])
@pytest.mark.parametrize("seed", range(10))
def test_a_group_is_in_one_part_and_no_part_is_empty(seed, shares):
    rng = np.random.default_rng(seed)
    groups = [f"g{i}" for i in rng.integers(0, rng.integers(3, 8), 40)] + ["g0", "one more", "and another"]
    part = deal(groups, shares, seed)
    assert set(part) == set(range(len(shares)))
    for group in set(groups):
        assert len({p for p, name in zip(part.tolist(), groups, strict=True) if name == group}) == 1
    np.testing.assert_array_equal(part, deal(groups, shares, seed))


def test_parts_have_their_share_as_far_as_groups_allow():
    single = [str(i) for i in range(101)]
    assert abs(deal(single, HALVES, 3).mean() - 0.5) < 0.01
    assert np.bincount(deal(single, (0.5, 0.25, 0.25), 3)) == pytest.approx([50.5, 25.25, 25.25], abs=1)
    held = deal(["large"] * 90 + [str(i) for i in range(10)], HALVES, 3) == 1
    assert 5 <= min(held.sum(), (~held).sum()) <= 10  # small groups dealt before the large one take turns
    assert len({deal([str(i) for i in range(20)], HALVES, seed).tobytes() for seed in range(5)}) == 5


def test_every_group_goes_where_most_is_missing():
    """The rule, group by group, in the order that the seed gives."""
    groups = np.random.default_rng(1).choice(list("abcdefgh"), 60).tolist()
    names, shares, filled, expected = sorted(set(groups)), (0.5, 0.3, 0.2), [0, 0, 0], {}
    for i in np.random.default_rng((7, 1)).permutation(len(names)):
        lacking = [f / s for f, s in zip(filled, shares, strict=True)]
        expected[names[i]] = lacking.index(min(lacking))
        filled[expected[names[i]]] += groups.count(names[i])
    assert deal(groups, shares, 7).tolist() == [expected[group] for group in groups]


def test_fewer_groups_than_parts_are_refused():
    with pytest.raises(InputError, match="2 parts need 2 groups, and the sequences form 1"):
        deal(["same"] * 9, HALVES, 0)


def test_a_text_is_on_the_same_side_in_any_company():
    texts = [f"C{'C' * i}O" for i in range(200)]
    rest, chosen = by_hash(texts, 4)
    assert sorted(rest + chosen) == sorted(texts)
    assert 0.15 < len(chosen) / 200 < 0.35
    again = by_hash(texts[::-1][:50] * 2, 4)
    assert [set(side) <= set(whole) for side, whole in zip(again, (rest, chosen), strict=True)] == [True, True]

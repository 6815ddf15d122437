from itertools import permutations

import numpy as np
import pytest
from scipy import sparse

from isotrace.annotation.scores import structure_stats
from isotrace.annotation.scores.structure_stats import morans_i, stability
from isotrace.base.errors import InputError
from isotrace.domains.domain import Reading, Spelling

F = 5


def graph(rng, n: int) -> np.ndarray:
    """A random tree with one ring closure where there is room."""
    pairs = {(int(rng.integers(0, i)), i) for i in range(1, n)}
    if n > 3:
        pairs.add((0, n - 1))
    return np.asarray(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def problem(seed: int, sizes=(2, 3, 4, 9, 1, 6)):
    """Elements written by one or two tokens, tokens that write none or two."""
    rng = np.random.default_rng(seed)
    elements, bonds = [], []
    for n in sizes:
        tokens = [(), *((i,) for i in range(n)), (), (n - 1,)]
        tokens.insert(1, (0, n - 1) if n > 1 else (0,))
        elements.append(tokens)
        bonds.append(graph(rng, n))
    ptr = np.concatenate([[0], np.cumsum([len(e) for e in elements])])
    dense = rng.integers(1, 5, (ptr[-1], F)) * (rng.random((ptr[-1], F)) < 0.5)
    dense[:, 0] = 0
    dense[:, 1] = 2  # the same on every element
    return dense.astype(np.float32), elements, bonds, ptr


def by_element(dense, elements, ptr) -> list[np.ndarray]:
    found = []
    for s, tokens in enumerate(elements):
        x = np.zeros((1 + max(e for of in tokens for e in of), F))
        for token, of in enumerate(tokens):
            for element in of:
                x[element] = np.maximum(x[element], dense[ptr[s] + token])
        found.append(x)
    return found


def double_loop(values: list[np.ndarray], bonds: list[np.ndarray]) -> np.ndarray:
    """Of one feature: the definition, pair by pair."""
    n = weights = above = below = 0.0
    for x, pairs in zip(values, bonds, strict=True):
        if len(pairs):
            z = x - x.mean()
            for i in range(len(z)):
                for j in range(len(z)):
                    linked = (i, j) in map(tuple, pairs.tolist()) or (j, i) in map(tuple, pairs.tolist())
                    weights += linked
                    above += linked * z[i] * z[j]
            n += len(z)
            below += (z**2).sum()
    return n / weights * above / below if below > 0 else np.nan


@pytest.mark.parametrize("block", [1, 30, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_morans_i_equals_the_double_loop(monkeypatch, seed, block):
    monkeypatch.setattr(structure_stats, "BLOCK_ENTRIES", block)
    dense, elements, bonds, ptr = problem(seed)
    found = morans_i(sparse.csr_matrix(dense), elements, bonds, ptr)
    values = by_element(dense, elements, ptr)
    expected = [double_loop([x[:, f] for x in values], bonds) for f in range(F)]
    np.testing.assert_allclose(found.value, expected, atol=1e-12)
    assert np.isnan([*found.value[:2], *found.null[:2], *found.sd[:2]]).all()
    assert np.isfinite([found.value[2:], found.null[2:], found.sd[2:]]).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_null_is_that_of_all_permutations(n):
    rng = np.random.default_rng(n)
    pairs, x = graph(rng, n), rng.integers(0, 5, n).astype(float)
    x[0] = 7
    elements = [[(i,) for i in range(n)]]
    activations = sparse.csr_matrix(x[:, None])
    found = morans_i(activations, elements, [pairs], np.array([0, n]))
    all_values = [double_loop([x[list(order)]], [pairs]) for order in permutations(range(n))]
    assert found.null[0] == pytest.approx(np.mean(all_values), abs=1e-12)
    assert found.null[0] == pytest.approx(-1 / (n - 1), abs=1e-12)
    assert found.sd[0] == pytest.approx(np.std(all_values), abs=1e-7)


def test_the_null_of_several_sequences_is_that_of_sampled_permutations():
    rng = np.random.default_rng(0)
    dense, elements, bonds, ptr = problem(8)
    values = [x[:, 3] for x in by_element(dense, elements, ptr)]
    found = morans_i(sparse.csr_matrix(dense), elements, bonds, ptr)
    draws = [double_loop([rng.permutation(x) for x in values], bonds) for _ in range(2000)]
    assert found.null[3] == pytest.approx(np.mean(draws), abs=4 * found.sd[3] / np.sqrt(2000))
    assert found.sd[3] == pytest.approx(np.std(draws), rel=0.1)


def test_local_firing_stands_above_and_alternating_firing_below_the_null():
    n = 40
    chain = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    x = np.stack([np.arange(n) // 10 % 2, np.arange(n) % 2], axis=1).astype(np.float32)
    found = morans_i(sparse.csr_matrix(x), [[(i,) for i in range(n)]], [chain], np.array([0, n]))
    z = (found.value - found.null) / found.sd
    assert z[0] > 4
    assert z[1] < -4
    assert found.value[1] == pytest.approx(-1)


def test_without_bonds_there_is_no_statistic():
    found = morans_i(sparse.csr_matrix(np.eye(2)), [[(0,), (1,)]], [np.zeros((0, 2), int)], np.array([0, 2]))
    assert np.isnan([found.value, found.null, found.sd]).all()


class Ring:
    """A text of letters may be written from any letter on; `-` between letters is syntax."""

    @staticmethod
    def spellings(reading: Reading, n: int, seed: int) -> list[Spelling]:
        letters = reading.text.replace("-", "")
        shifts = range(1, 1 + min(n, len(letters) - 1))
        turned = [(letters[k:] + letters[:k], [(i + k) % len(letters) for i in range(len(letters))]) for k in shifts]
        return [Spelling("-".join(text), tuple(original)) for text, original in turned]


def read(text: str) -> Reading:
    if text.startswith("X"):
        raise InputError("X comes first")
    elements = [(len(text[:i].replace("-", "")),) if c != "-" else () for i, c in enumerate(text)]
    return Reading(text, (None,) * len(text), None, tuple(elements))


def encode(texts: list[str]) -> list[sparse.csr_matrix]:
    """Features: letter A; the first letter written; syntax; never; the first and second letter, A or not."""
    found = []
    for text in texts:
        place = np.array([len(text[:i].replace("-", "")) for i in range(len(text))])
        letter = np.array(list(text))
        on = [
            letter == "A",
            (place == 0) & (letter != "-"),
            letter == "-",
            letter == "?",
            (place < 2) & (letter != "-"),
        ]
        found.append(sparse.csr_matrix(np.stack(on, axis=1).astype(np.float32) * 0.5))
    return found


def test_stability_is_the_share_of_elements_that_fire_again():
    found = stability(encode, read, Ring(), [read("A-A-B-C-D"), read("A")], n_spellings=2, seed=0)
    assert (found.n_spellings, found.n_refused) == (2, 0)
    # Written from the second and from the third letter on: the first two letters are then 1, 2 and 2, 3.
    np.testing.assert_allclose(found.value, [1, 0, np.nan, np.nan, (1 + 0) / 4])
    np.testing.assert_allclose(found.null, [2 / 5, 1 / 5, np.nan, np.nan, 2 / 5])


def test_a_spelling_that_cannot_be_read_is_counted():
    found = stability(encode, read, Ring(), [read("A-X-A"), read("A-B")], n_spellings=5, seed=0)
    assert (found.n_spellings, found.n_refused) == (2, 1)
    np.testing.assert_allclose(found.value[:2], [1, 0])
    np.testing.assert_allclose(found.null[0], (2 * 2 / 3 + 1 * 1 / 2) / 3)


def test_nothing_to_compare():
    found = stability(encode, read, Ring(), [read("A")], n_spellings=3, seed=0)
    assert found.n_spellings == 0
    assert len(found.value) == 0

"""Features that change between wild type and mutant: sums against a plain loop, planted and absent links, the page."""

import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse
from scipy.stats import false_discovery_control

import isotrace
import published_layouts
import tiny
from isotrace.activations.harvest import record
from isotrace.annotation.nulls.sources import Site
from isotrace.base.errors import InputError
from isotrace.domains.mutations import mutated, mutations
from isotrace.probing import changes
from isotrace.probing.scan import ScanSettings
from isotrace.subjects.subject import load_subject

WILD = "TYKLILNGKTLKGETTTEA"
CELLS = [f"{wild}{site}{to}" for site, wild in enumerate(WILD[:12], 1) for to in "ADFKV" if to != wild]


@pytest.fixture(scope="module")
def esm(tmp_path_factory):
    return load_subject(published_layouts.make("esm2", tmp_path_factory.mktemp("changes") / "esm2"), domain="protein")


@pytest.fixture(scope="module")
def found(esm):
    """Of a dictionary, with the table and a variant of two mutations."""
    table = pl.DataFrame({"m": [*CELLS, "T1A:K3R"], "y": np.random.default_rng(0).normal(size=len(CELLS) + 1)})
    dictionary = tiny.random_dictionary(esm, n_features=24)
    result = isotrace.scan(esm, WILD, table, "m", "y", bootstrap=40, dictionary=dictionary)
    return dictionary, result


def window_sum(subject, dictionary, text: str, site: int) -> np.ndarray:
    """`[layers, features]`, a token at a time."""
    batch, config = subject.tokenize([text]), dictionary.config
    total = np.zeros((config.n_layers, config.n_features))

    def take(layer, x):
        for element in range(max(0, site - 6), min(len(text), site + 5)):
            one = dictionary.encode(layer, x[0, element + 1][None])  # after the start token
            for feature, value in zip(one.indices[0].tolist(), one.values[0].tolist(), strict=True):
                total[layer, feature] += max(value, 0.0)

    record(subject, batch, config.reads, take)
    return total


def test_changes_are_sums_over_the_window(esm, found):
    dictionary, result = found
    rows = result.tables["changes"]
    for cell in (CELLS[0], CELLS[27], CELLS[-1]):
        (change,) = mutations(cell)
        before = window_sum(esm, dictionary, WILD, change.site)
        after = window_sum(esm, dictionary, mutated(WILD, [change]), change.site)
        own = rows.filter(pl.col("mutation") == cell).to_dicts()
        largest = np.sort(np.abs(after - before).ravel())[::-1][: changes.SHOWN]
        assert [abs(row["change"]) for row in own] == pytest.approx(largest[largest > 0].tolist(), abs=1e-4)
        for row in own:
            place = dictionary.config.layers.index(row["layer"]), row["feature"]
            assert (row["before"], row["after"]) == pytest.approx((before[place], after[place]), abs=1e-4)
    assert set(rows["mutation"]) <= set(CELLS), "variants of several mutations have no one window"


def planted(rng, link: float):
    """Changes `[variants, features]` with levels of whole sites, and effects with theirs, that feature 3 shares as far
    as `link` says."""
    sites, residues = np.repeat(np.arange(1, 25), 5), np.tile(np.arange(5), 24)
    effects = rng.normal(size=24)[sites - 1] + rng.normal(size=120)
    change = rng.normal(size=(24, 40))[sites - 1] + rng.normal(size=(120, 40))
    change[:, 3] = link * effects + (1 - link) * change[:, 3]
    held = np.isin(sites, rng.permutation(24)[:12] + 1)
    return sparse.csr_matrix(change), effects, sites, residues, held


def judged(rng, link: float) -> changes.Judged:
    change, effects, sites, residues, held = planted(rng, link)
    exchanged = changes._exchanges(effects[held], sites[held], residues[held], rng)
    places = [Site("x", 0, "a", 25, lambda _: None), Site("x", 2, "b", 15, lambda _: None)]  # pyright: ignore
    return changes._judged(change, places, effects, sites, held, exchanged, ScanSettings(n_bootstrap=20))


def test_a_feature_that_goes_with_the_effect_is_found_and_others_are_not(monkeypatch):
    monkeypatch.setattr(changes, "PERMUTATIONS", 60)
    rng = np.random.default_rng(0)
    one = judged(rng, 0.9)
    assert one.keys[0] == (0, 3)
    assert {layer for layer, _ in one.keys} == {0, 2}
    assert one.held[0, 0] > 0.9
    np.testing.assert_allclose(one.q, false_discovery_control(one.p))
    assert one.p[0] == pytest.approx(1 / 61)
    assert one.p_together <= 0.1
    null = [judged(rng, 0.0) for _ in range(20)]
    assert sum(each.p_together <= 0.05 for each in null) <= 5
    assert np.mean([each.p for each in null]) == pytest.approx(0.5, abs=0.1)
    assert np.abs(np.mean([each.held[:, 0] for each in null])) < 0.1, "what was chosen is not what is reported"


def test_what_is_told_and_read_again(esm, found, tmp_path):
    dictionary, result = found
    told = result.summary["features"]
    assert set(told["sources"]) == {"dictionary", "neurons", "random", "untrained"}
    assert set(told["nearer_by"]) == {"neurons", "random", "untrained"}
    own = told["sources"]["dictionary"]
    assert own["distance"] == pytest.approx(1 - own["value"])
    assert told["nearer_by"]["random"]["by"] == pytest.approx(own["value"] - told["sources"]["random"]["value"])
    assert 0 < len(told["rows"]) == own["n"] <= changes.TOP
    assert all(0 < row["p"] <= row["q"] <= 1 for row in told["rows"])
    result.save(tmp_path / "run")
    assert isotrace.load(tmp_path / "run").page() == result.page()
    assert "Features that change" in result.page()
    cells = [cell for cell in CELLS if int(cell[1:-1]) <= 7]
    few = pl.DataFrame({"m": cells, "y": np.arange(len(cells)) + 0.5})
    other = isotrace.scan(esm, WILD, few, "m", "y", bootstrap=20, dictionary=dictionary).summary["features"]
    assert other["reason"] == "single mutations of 7 sites, and halves of them need 10"
    assert other["sources"] == {}
    with pytest.raises(InputError, match="--names names features"):
        isotrace.scan(esm, WILD, few, "m", "y", names=tmp_path)


def test_random_directions_are_as_sparse(esm, found):
    made = changes._random(esm, found[0], WILD, 3, 0)
    x = torch.randn(5, made.config.d_in)
    assert made.encode(0, x).indices.shape == (5, 3)

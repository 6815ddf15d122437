"""How few features a task needs: planted features, and bases of a tiny subject."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapting_table import DOMAIN, MOLECULES

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.errors import InputError
from isotrace.dictionaries.saving import load_dictionary
from isotrace.probing.linear import Task
from isotrace.studies.study import bundled_table
from isotrace.subjects.subject import load_subject
from isotrace.transfer.predictors import PREDICTORS, Evidence
from isotrace.transfer.predictors.evidence import Basis
from isotrace.transfer.predictors.features import BASES, bases_of, coverage, inside, with_features
from isotrace.transfer.predictors.features.bases import active_columns, pooled_features
from isotrace.transfer.predictors.features.few import curve
from tiny import random_dictionary

NITROGENS = np.asarray([text.count("N") for text in MOLECULES], float)


def planted(label, kind: Task = "classification", n=200) -> Evidence:
    """40 sparse features, embeddings that hold them all, and a label made of features; `pca`: the same turned."""
    rng = np.random.default_rng(0)
    a = np.maximum(0, rng.standard_normal((n, 40)) - 0.7)
    f = a @ rng.standard_normal((40, 64)) + 0.01 * rng.standard_normal((n, 64))
    turned = a @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    groups = np.asarray([str(i // 2) for i in range(n)])
    return Evidence(f, (), label(a).astype(float), kind, groups, features={"dictionary": a, "pca": turned})


def test_a_task_of_two_features_needs_two():
    known = planted(lambda a: (a[:, 3] > 0) | (a[:, 17] > 0))
    assert PREDICTORS["fewest_dictionary"].score(known) <= 2
    assert PREDICTORS["sparse_dictionary"].score(known) > 0.9
    few, turned = (PREDICTORS[f"few_{basis}"].score(known) for basis in ("dictionary", "pca"))
    assert few > turned + 0.1
    row = PREDICTORS["few_neurons"].row(known)
    assert math.isnan(row.score)
    assert "neurons" in row.reason


def test_a_number_of_two_features_is_reached_exactly_by_two():
    known = planted(lambda a: 2 * a[:, 3] - a[:, 17], "regression")
    found = curve(known, known.features["dictionary"])
    assert [*found] == [1, 2, 4, 8, 16, 20]
    assert found[1] < 0.9
    assert found[2] == pytest.approx(1)
    assert PREDICTORS["fewest_dictionary"].score(known) == 2
    assert PREDICTORS["sparse_dictionary"].score(known) > 0.95


def test_a_task_that_no_few_features_tell_is_new():
    """Half of it in every feature: the dense probe knows it."""
    known = planted(lambda a: a @ np.where(np.arange(40) % 2, 1.0, -1), "regression")
    few = replace(known, features={"dictionary": known.features["dictionary"][:, :4]})
    assert "new" in PREDICTORS["fewest_dictionary"].row(few).reason
    noise = replace(known, y=np.random.default_rng(1).standard_normal(200))
    assert "chance" in PREDICTORS["fewest_dictionary"].row(noise).reason


@pytest.mark.nightly
def test_molm_knows_an_or_of_two_of_its_features_by_two_and_no_parity():
    subject = load_subject("bundled:molm")
    dictionary = load_dictionary("bundled:molm-clt", subject)
    texts = bundled_table("esol")["smiles"].to_list()[:200]
    parity = np.asarray([len(text) % 2 for text in texts], float)
    known = Evidence.of(subject, texts, parity, "classification", seed=0)
    known = with_features(known, {"dictionary": Basis(subject, dictionary)})
    assert PREDICTORS["fewest_dictionary"].row(known).reason
    active = known.features["dictionary"] > 0
    share = active.mean(0)
    one, other = np.flatnonzero((share > 0.25) & (share < 0.4))[[3, 40]]
    either = replace(known, y=(active[:, one] | active[:, other]).astype(float))
    assert PREDICTORS["fewest_dictionary"].score(either) <= 2
    assert PREDICTORS["sparse_dictionary"].score(either) > PREDICTORS["probe"].score(either)


@pytest.mark.parametrize(
    ("kind", "label"), [("regression", NITROGENS), ("classification", (NITROGENS > 1).astype(float))]
)
def test_coverage_is_the_share_of_environments_that_a_feature_tracks(kind, label):
    """Peaks of the presence of half of the environments that matter, times an activation; the means tell nothing. And
    of as many random features, as often active."""
    rng, groups = np.random.default_rng(0), np.asarray([str(i % 20) for i in range(len(MOLECULES))])
    y = label + (0.01 * np.arange(len(MOLECULES)) if kind == "regression" else 0)
    known = Evidence(np.eye(len(y)), (), y, kind, groups, tuple(MOLECULES), domain=DOMAIN)
    there = coverage.environments(known)
    assert 5 < there.shape[1] <= 20
    told = [i for i in range(there.shape[1]) if 0.1 < there[:, i].mean() < 0.8]
    assert len(told) > 3
    activation = 0.2 + rng.random(there.shape)
    for tracked in (told, told[: len(told) // 2]):
        peaks = np.where(there, activation, 0.0)[:, tracked]
        shuffled = rng.permuted(peaks, axis=0)
        features = {"dictionary": np.hstack([shuffled, peaks]), "pca": np.hstack([peaks, shuffled])}
        given = replace(known, features=features)
        # an environment that stands in the same molecules as another is tracked with it
        expected = np.mean([any((there[:, [i]] == there[:, tracked]).all(0)) for i in range(there.shape[1])])
        assert PREDICTORS["coverage_dictionary"].score(given) >= expected > 0
        assert PREDICTORS["coverage_pca"].score(given) <= 0.1
    assert "domain" in PREDICTORS["coverage_dictionary"].row(replace(given, domain=None)).reason


def test_a_threshold_and_its_p_by_hand():
    """One feature, active on 0 to 3: from 2 on is best where it was chosen, and 2 of 3 are right where it was not."""
    peaks = np.asarray([3, 2, 1, 0, 3, 2, 2, 0], float)[:, None]
    there = np.asarray([1, 1, 0, 0, 1, 1, 0, 0], bool)[:, None]
    chosen = np.arange(8) < 4
    fires = coverage.best_features(peaks, there, chosen)
    assert fires[:, 0].tolist() == [True, True, False, False, True, True, True, False]
    f1, p = coverage.judged(fires[~chosen], there[~chosen])
    assert f1 == pytest.approx([4 / 5])
    assert p == pytest.approx([1 / 2])  # of 6 ways to place two among four, 3 hit twice with three


@pytest.fixture(scope="module")
def tiny_bases(_loaded):
    subject = _loaded["esm-rotary"][0]
    dictionary = random_dictionary(subject, n_features=24)
    blank = untrained_subject(subject, 0)
    return bases_of(subject, dictionary, MOLECULES[:20], 0, Basis(blank, random_dictionary(blank, n_features=24)))


@pytest.fixture(scope="module")
def written(_loaded, tiny_bases):
    y = NITROGENS + 0.01 * np.arange(len(MOLECULES))
    groups = [str(i % 12) for i in range(len(MOLECULES))]
    plain = Evidence.of(_loaded["esm-rotary"][0], MOLECULES, y, "regression", seed=0, groups=groups)
    return with_features(plain, tiny_bases)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("name", ["sparse", "few", "fewest", "inside", "coverage"])
def test_every_basis_has_a_score_and_the_same_again(written, name, basis):
    predictor = PREDICTORS[f"{name}_{basis}"]
    row = predictor.row(written)
    assert math.isfinite(row.score) != bool(row.reason)
    assert not row.reason or name == "fewest"
    assert np.array_equal(predictor.score(written), row.score, equal_nan=True)
    assert basis in predictor.about


def test_pooled_features_by_hand(rotary, tiny_bases):
    basis, texts = tiny_bases["dictionary"], ["CCN", "CCOC", "OCN"]
    found, config = pooled_features(basis, texts), basis.dictionary.config
    rows = []
    for text in texts:
        batch, dense = rotary.tokenize([text]), []
        captured = rotary.run(batch, capture=config.reads).captured
        for slot, read in enumerate(config.reads):
            x = captured[read][0, 1:-1]  # without begin and end
            dense.append(basis.dictionary.encode(slot, x).dense(config.n_features))
        every = torch.cat(dense, 1).clamp(min=0).double()
        rows.append((every.mean(0), every.amax(0)))
    means, peaks = (torch.stack(parts).numpy() for parts in zip(*rows, strict=True))
    active = peaks.max(0) > 0
    assert np.allclose(found, np.concatenate([means[:, active], peaks[:, active]], 1), atol=1e-5)


def test_texts_read_together_have_the_features_of_each_reading(tiny_bases):
    basis, texts = tiny_bases["dictionary"], MOLECULES[:12]
    together = pooled_features(basis, texts)
    assert together.shape[1] > pooled_features(basis, texts[3:5]).shape[1]
    assert np.allclose(active_columns(together[3:5]), pooled_features(basis, texts[3:5]), atol=1e-6)
    assert active_columns(np.zeros((3, 8))).shape == (3, 2)


@pytest.fixture(autouse=True)
def _eight(monkeypatch):
    monkeypatch.setattr(inside, "INPUTS", 8)
    monkeypatch.setattr(coverage, "TREES", 30)


def made_of(written, n_features: int, k: int) -> tuple[Evidence, Basis]:
    dictionary = random_dictionary(written.subject, n_features=n_features, k=k, window=1)
    basis = Basis(written.subject, dictionary)
    return replace(written, bases={"dictionary": basis}), basis


def test_rows_that_span_everything_hold_the_gradient_as_random_ones_do(written):
    known, _ = made_of(written, 400, 400)
    assert PREDICTORS["inside_dictionary"].score(known) == pytest.approx(0, abs=1e-6)


def test_only_active_rows_that_span_everything_hold_all_of_the_gradient(written):
    """16 features of 400 are active and write along every axis, the others write nothing: of as many random ones about
    one in 25 writes."""
    known, basis = made_of(written, 400, 16)
    for encoder, decoder in zip(basis.dictionary.b_enc, basis.dictionary.W_dec, strict=True):
        encoder.data[:16] = 1_000
        decoder.data[:] = 0
        decoder.data[:16] = torch.eye(16)
    assert 0.9 < PREDICTORS["inside_dictionary"].score(known) < 1


def test_no_texts_no_features(tiny_bases):
    with pytest.raises(InputError, match="texts"):
        with_features(planted(lambda a: a[:, 0] > 0), tiny_bases)

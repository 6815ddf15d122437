"""How much an adapted subject reuses: planted readouts, changed weights, and the command."""

import copy
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch
from adapting_table import table

import isotrace
import tiny
from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.attribution.edge_rows import EdgeRows
from isotrace.attribution.graph import frame
from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.report.transfer.reuse import verdict
from isotrace.stats.splits import deal
from isotrace.studies.study import bundled_table
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.head import Readout
from isotrace.transfer.predictors.evidence import Basis
from isotrace.transfer.predictors.features.bases import pooled_features
from isotrace.transfer.reuse.contributions import contributions, encoded, gradients, require_writes_of_mlps
from isotrace.transfer.reuse.matrices import matrices
from isotrace.transfer.reuse.reading import State, correlations, read
from isotrace.transfer.reuse.reuse import DICTIONARY, reuse


@pytest.fixture(scope="module")
def subject(folders):
    return tiny.load_tiny(folders["esm-rotary"])


def last_map(subject) -> torch.Tensor:
    """`[d, d_ff]` of the last MLP."""
    return cast(torch.Tensor, subject.mlp(2)[1].weight)


def along(subject, rows) -> Readout:
    """A readout of the mean final hidden state whose slope at the last MLP lies along `rows [n, d]`, which are centred,
    in every frozen pass."""
    final = [*subject.norms.values()][-1]
    weight = sum(rows) / final.weight.detach()
    return Readout((subject.n_layers,), "mean", weight[:, None].double().numpy(), np.zeros(1))


@pytest.fixture(scope="module")
def planted(subject):
    """(dictionary, three directions): it reads and writes what the last MLP writes along the first two, either sign."""
    rows = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))
    rows[:, 0] = 1
    directions = torch.linalg.qr(rows)[0].T[1:]  # orthogonal to the mean too
    dictionary = tiny.random_dictionary(
        subject, "sae", layers=(2,), hookpoint_in="layers.{}.mlp_out", hookpoint_out="layers.{}.mlp_out",
        n_features=4, k=4,
    )  # fmt: skip
    both = torch.cat([directions[:2], -directions[:2]])
    dictionary.W_enc[0].copy_(both.T)
    dictionary.W_dec[0].copy_(both)
    dictionary.b_enc[0].zero_()
    dictionary.b_dec[0].zero_()
    return dictionary, directions


def test_contributions_are_the_edges_of_the_graph(subject):
    dictionary = tiny.random_dictionary(subject, window=2)
    batch, target = tiny.prepared("probe", subject)
    (known,) = encoded(subject, [dictionary], batch)
    found = contributions(known, gradients(subject, batch, [target])[0])
    edges = EdgeRows(frame(subject, dictionary, batch, target), 1)
    row = edges.target_row()[0].double().numpy()
    on = np.concatenate([(a.values > 0).flatten().numpy() for a in known.active])
    assert on.sum() == len(found.features)
    assert np.allclose(found.features, row[: edges.n_slots][on], atol=1e-5)
    errors = row[edges.n_slots :][: found.errors.size]
    assert np.allclose(found.errors.ravel(), errors, atol=1e-5)
    assert found.nodes.sum() == pytest.approx(found.features.sum())


def test_a_readout_of_two_features_is_all_reuse_and_one_beside_them_none(subject, planted):
    dictionary, directions = planted
    of = table(subject, "number")
    rows = of.members("test").tolist()
    shares = {}
    for name, chosen in {"inside": directions[:2], "outside": directions[2:], "both": directions[[0, 2]]}.items():
        state = State(name, subject, along(subject, [*chosen]))
        made = read(state, {DICTIONARY: dictionary}, of, rows, 0).made[DICTIONARY, "number"]
        shares[name] = made.reuse(np.ones((1, len(rows))))[0], made.net(np.ones((1, len(rows))))[0]
    assert min(shares["inside"]) > 0.9
    assert max(shares["outside"]) < 1e-3
    assert 0.1 < shares["both"][0] < 0.9


@pytest.fixture(scope="module")
def two(subject, planted):
    """Reuse of the planted dictionary by the subject itself, and by a copy whose last MLP writes otherwise."""
    of, found = table(subject, "number"), {}
    for name, noise in (("same", 0.0), ("other", 0.5)):
        model = copy.deepcopy(subject.model)
        after = Subject(model, subject.tokenizer, subject.files, subject.has_head)
        last = last_map(after)
        last += noise * torch.randn(last.shape, generator=torch.Generator().manual_seed(1))
        readout = along(subject, [*planted[1][:2]])
        blank = State("untrained", untrained_subject(subject, 0), readout)
        states = State("before", subject, readout), State("after", after, readout), blank
        found[name] = reuse(*states, planted[0], of, seed=0, n_bootstrap=40)
    return found


def test_a_subject_that_stays_loses_nothing(two):
    same = two["same"]
    fve = {name: one.explained[DICTIONARY].fve(same.weights) for name, one in same.reads.items()}
    assert np.array_equal(fve["before"], fve["after"])
    known = same.correlation[np.isfinite(same.correlation)]
    assert np.allclose(known, 1)
    pair = next(row for row in same.overlaps["number"] if (row["a"], row["b"]) == ("before", "after"))
    assert pair["jaccard"] == 1
    assert {row["b"] for row in same.overlaps["number"]} == {"after", "pretraining"}
    assert not same.matrices.filter(pl.col("change") > 0).height
    assert same.names == [DICTIONARY, "random", "neurons"]
    ones = np.ones((1, same.weights.shape[1]))
    made = {name: same.reads["after"].made[name, "number"].reuse(ones)[0] for name in same.names}
    assert made["random"] < made[DICTIONARY]


def test_what_a_changed_subject_loses_is_counted_by_hand(subject, planted, two):
    directions = planted[1]
    other, of = two["other"], table(subject, "number")
    texts = [of.examples[i].text for i in of.members("test")]
    y = torch.cat([subject.run(subject.tokenize([t]), capture=["layers.2.mlp_out"]).captured["layers.2.mlp_out"][0]
                   for t in texts])  # fmt: skip
    left = y - y @ directions[:2].T @ directions[:2]
    expected = 1 - float(left.square().sum() / (y - y.mean(0)).square().sum())
    ones = np.ones((1, len(texts)))
    found = {name: one.explained[DICTIONARY].fve(ones)[0] for name, one in other.reads.items()}
    assert found["before"] == pytest.approx([expected, expected], abs=1e-5)
    assert found["after"][0] != pytest.approx(expected, abs=1e-2)
    assert np.nanmax(other.correlation) < 0.999
    frame = other.features("number")
    assert frame["attribution_after"].sum() == pytest.approx(1)
    # a feature's row, its norm the same on both sides but for the tokens it is active on
    assert (frame["effect_before"].drop_nulls() != 0).all()


def test_correlations_are_numpys():
    from scipy import sparse

    rng = np.random.default_rng(0)
    a, b = (np.maximum(0, rng.standard_normal((50, 4))) for _ in range(2))
    a[:, 3] = 2.0
    found = correlations(*(sparse.csc_array(x) for x in (a, b)))
    assert found[:3] == pytest.approx([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)])
    assert np.isnan(found[3])


@pytest.mark.parametrize(("where", "expected"), [(0, 1.0), (2, 0.0)])
def test_a_change_of_rank_one(subject, planted, where, expected):
    """Along a decoder row, and along a direction that no feature writes."""
    dictionary, directions = planted
    after = Subject(copy.deepcopy(subject.model), subject.tokenizer, subject.files, subject.has_head)
    last = last_map(after)
    last += torch.outer(directions[where], torch.randn(last.shape[1], generator=torch.Generator().manual_seed(2)))
    rows = matrices(subject, after, dictionary, [np.asarray([where % 2])])
    (row,) = rows.filter(pl.col("change") > 0).to_dicts()
    assert row["stable_rank"] == pytest.approx(1, abs=1e-4)
    assert row["share"] == pytest.approx(expected, abs=1e-5)
    assert (row["span"], row["share_random"]) == (2, 2 / 16)
    assert row["circuit_share"] == pytest.approx(expected, abs=1e-5)
    change = float((last - last_map(subject)).norm() / last_map(subject).norm())
    assert row["change"] == pytest.approx(change, rel=1e-4)
    assert rows.filter(pl.col("change") == 0)["stable_rank"].is_nan().all()


def test_labels_per_atom_and_classes_are_taken_apart(subject):
    dictionary = tiny.random_dictionary(subject)
    for labels in (("site",), ("first", "oxygen")):
        of = table(subject, *labels)
        rng = np.random.default_rng(0)
        weight, pool = rng.standard_normal((64, of.n_outputs)), "mean+max"
        if of.by_token:
            weight, pool = weight[:32], "token"
        readout = Readout((1, 3), pool, weight, np.zeros(of.n_outputs))
        rows = of.members("test").tolist()
        found = read(State("before", subject, readout), {DICTIONARY: dictionary}, of, rows, 0)
        for label in labels:
            assert (found.made[DICTIONARY, label].sums > 0).all()


def test_a_dictionary_that_writes_elsewhere_is_refused(subject):
    other = tiny.random_dictionary(
        subject, "sae", hookpoint_in="layers.{}.resid_post", hookpoint_out="layers.{}.resid_post"
    )
    with pytest.raises(DictionaryError, match="mlp_out"):
        require_writes_of_mlps(other, subject, "it")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    texts = [
        a + b + c for a in ("C", "N", "OC", "CCC") for b in ("CC", "CN", "CO", "CCl", "CF") for c in ("C", "N", "O")
    ]
    frame = pl.DataFrame({
        "sequence": texts, "activity": [text.count("N") + 0.25 * len(text) for text in texts],
        "batch": [str(i % 9) for i in range(len(texts))],
    })  # fmt: skip
    path = tmp_path_factory.mktemp("reuse") / "data.csv"
    frame.write_csv(path)
    return path


def test_it_says_new_reused_or_that_nothing_shows_it():
    one = lambda value, low: {"value": value, "ci": [low, 2 * value - low]}  # noqa: E731
    others = [{"name": name, "reuse_after": one(0.6, 0.55), "reuse_beyond": one(0.3, 0.2)}
              for name in ("random", "neurons", "untrained")]  # fmt: skip
    own = {"name": DICTIONARY, "reuse_after": one(0.9, 0.85), "reuse_before": one(0.95, 0.9)}
    row = {"metric": "auroc", "chance": 0.5, "probe": one(0.8, 0.7), "adapted": one(0.9, 0.8), "shares": [own, *others],
           "untrained": one(0.7, 0.6), "gain": one(0.1, 0.05)}  # fmt: skip
    assert "reuses what was there: 90 % [85, 95]" in verdict("it", row, one(0.9, 0.8))
    assert "pretraining" not in verdict("it", row, one(0.9, 0.8))
    idle = verdict("it", {**row, "gain": one(0.1, -0.05)}, one(0.9, 0.8))
    assert "reuses what was there" in idle
    assert "That pretraining put it there is not shown" in idle
    assert "untrained copy 60 % [55.0, 65.0]" in verdict("it", row, one(0.9, 0.8))
    assert "nothing is shown to be reused" in verdict("it", row, one(0.1, -0.1))
    level = [*others[:2], {**others[2], "reuse_beyond": one(0.1, -0.1)}]
    assert "not shown to be more" in verdict("it", {**row, "shares": [own, *level]}, one(0.9, 0.8))
    blind = {**row, "probe": one(0.52, 0.4)}
    assert verdict("it", blind, one(0.9, 0.8)).startswith("it is new")
    assert "learned in training" in verdict("it", blind, one(0.9, 0.8))
    assert "nor was it learned" in verdict("it", {**blind, "adapted": one(0.5, 0.4)}, one(0.9, 0.8))


def saved(subject, folder):
    dictionary = tiny.random_dictionary(subject)
    save_dictionary(dictionary, folder, reference(subject), dtype=torch.float32, training={})
    return folder


HOW = {"label": "activity", "group": "batch", "domain": "molecule", "column": "sequence", "steps": 4, "every": 2,
       "method": "full", "baselines": False, "bootstrap": 20}  # fmt: skip


def test_the_command_says_what_is_reused_and_goes_on_where_it_was_killed(folders, data, subject, tmp_path):
    dictionary, out, seen = saved(subject, tmp_path / "dictionary"), tmp_path / "out", []

    def killed(items, label):
        for item in items:
            if label == "taking apart after":
                raise KeyboardInterrupt
            yield item

    def counted(items, label):
        items = list(items)
        seen.append((label, len(items)))
        return items

    asked = {**HOW, "dictionary": dictionary, "out": out}
    with pytest.raises(KeyboardInterrupt):
        isotrace.adapt(folders["esm-rotary"], data, progress=killed, **asked)
    found = isotrace.adapt(folders["esm-rotary"], data, progress=counted, **asked)
    assert ("full-0", 0) in seen  # all steps were on disk
    told = found.summary["reuse"]
    assert len(told["layers"]) == 4
    assert [row["name"] for row in told["labels"]["activity"]["shares"]] == [
        DICTIONARY, "random", "neurons", "untrained",
    ]  # fmt: skip
    assert found.summary["matrices"]["changed"] > 3
    assert {*found.tables} == {"predictions", "curves", "rejects", "matrices", "reuse"}
    back = isotrace.load(out)
    assert back.tables["reuse"].equals(found.tables["reuse"])
    page = (out / "report.html").read_text()
    assert "What is reused" in page
    assert "Where the weights went" in page
    plain = isotrace.adapt(folders["esm-rotary"], data, **HOW)
    assert plain.summary["reuse"] is None
    assert plain.tables["matrices"]["change"].equals(found.tables["matrices"]["change"])
    probed = isotrace.adapt(folders["esm-rotary"], data, **HOW | {"method": "probe"})
    assert probed.summary["matrices"] is None


def test_a_dictionary_of_another_subject_ends_it_before_any_training(folders, data, tmp_path, monkeypatch):
    monkeypatch.setattr("isotrace.transfer.adapting.comparison.compared", lambda *_, **__: pytest.fail("trained"))
    wrong = saved(tiny.load_tiny(folders["bert"]), tmp_path / "wrong")
    with pytest.raises(DictionaryError, match="trained on"):
        isotrace.adapt(folders["esm-rotary"], data, dictionary=wrong, **HOW)
    with pytest.raises(DictionaryError, match="is no dictionary"):
        isotrace.adapt(folders["esm-rotary"], data, dictionary=tmp_path / "nothing", **HOW)


@pytest.fixture(scope="module")
def molm():
    subject = isotrace.load_subject("bundled:molm")
    return subject, load_dictionary("bundled:molm-clt", subject)


def asked_of_molm(molm, labels, monkeypatch, **how):
    """ESOL's molecules, half of them held out: whether one of two features is active, the parity of the string's
    length, and whether one of both is so; 12 of the held-out ones are taken apart."""
    monkeypatch.setattr("isotrace.transfer.reuse.reuse.MOST", 12)
    frame = bundled_table("esol")
    texts = frame["smiles"].to_list()
    active = pooled_features(Basis(*molm), texts) > 0
    share = active.mean(0)
    one, other = np.flatnonzero((share > 0.25) & (share < 0.4))[[3, 40]]
    either, odd = active[:, one] | active[:, other], np.asarray([len(text) % 2 == 1 for text in texts])
    groups = [scaffold or text for text, scaffold in zip(texts, frame["murcko_scaffold"], strict=True)]
    parts = np.asarray(["train", "valid", "test"])[deal(groups, (0.4, 0.1, 0.5), 0)]
    words = {name: np.where(y, "yes", "no") for name, y in {"either": either, "odd": odd, "xor": either ^ odd}.items()}
    frame = frame.with_columns(**{k: pl.Series(v) for k, v in {**words, "group": groups, "part": parts}.items()})
    found = isotrace.adapt(
        molm[0], frame, labels, column="smiles", split="part", group="group", dictionary=molm[1], bootstrap=200,
        baselines=False, **how,
    )  # fmt: skip
    return found.summary["reuse"]["labels"]


@pytest.mark.nightly
def test_molm_reuses_an_or_of_two_features_and_parity_is_new(molm, monkeypatch):
    told = asked_of_molm(molm, ("either", "odd", "xor"), monkeypatch, method="probe")
    assert told["odd"]["verdict"].startswith("odd is new")
    assert told["xor"]["verdict"].startswith("xor is new")
    assert told["either"]["verdict"].startswith("either reuses what was there")
    assert told["either"]["shares"][0]["reuse_after"]["value"] > 0.9


@pytest.mark.nightly
def test_weights_that_began_at_random_reuse_nothing(molm, monkeypatch):
    told = asked_of_molm(molm, "either", monkeypatch, method="scratch", steps=2)
    assert "nothing is shown to be reused" in told["either"]["verdict"]

"""Detectors of concepts with known error rates, labels from columns and domain, and the edit that rules make."""

import numpy as np
import planted
import polars as pl
import pytest
import torch

import isotrace
from isotrace.base.errors import InputError
from isotrace.datasets.reading.yes_no import yes_no
from isotrace.interventions import Heads, Neurons, Tokens
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions import DIRECTIONS, Fitting
from isotrace.steering.directions.concepts.detectors import Scores, best_cut, cut, scored, telling
from isotrace.steering.directions.concepts.labels import carried
from isotrace.steering.directions.concepts.rulebase import RuleBase
from isotrace.steering.directions.concepts.rules import reasoner

RULES = "element N and not element F -> good; element O -> bad"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    subject, weights, (_, neuron) = planted.subject_of(tmp_path_factory.mktemp("planted"))
    return subject, weights, neuron, planted.contrast_of(subject, n=24)


def planted_scores(hit, alarm, seed, n=3000, length=5):
    """Sequences of five tokens, in half of them the first carries the concept; it fires at a share `hit` of such tokens
    and `alarm` of others."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, length), dtype=bool)
    truth[: n // 2, 0] = True
    fires = rng.random((n, length)) < np.where(truth, hit, alarm)
    scores = np.where(fires, rng.uniform(2, 3, (n, length)), rng.uniform(0, 1, (n, length)))
    return Scores(scores.ravel(), np.repeat(np.arange(n), length), truth.ravel())


@pytest.mark.parametrize(("hit", "alarm"), [(0.9, 0.05), (0.7, 0.02), (1.0, 0.0)])
def test_a_detector_has_the_error_rates_that_were_planted(hit, alarm):
    chosen, held = (planted_scores(hit, alarm, seed) for seed in (0, 1))
    token, sequence = cut(chosen, held), cut(chosen.by_sequence(), held.by_sequence())
    assert 0.9 < token.threshold < 2.1
    assert token.held == pytest.approx((hit + 1 - alarm) / 2, abs=0.02)
    silent = (1 - alarm) ** 4  # the other tokens of a sequence
    assert sequence.held == pytest.approx((1 - (1 - hit) * silent + silent * (1 - alarm)) / 2, abs=0.02)
    other = cut(chosen, planted_scores(0.5, 0.5, 2))
    assert other.threshold == token.threshold  # frozen
    assert other.held == pytest.approx(0.5, abs=0.03)


def test_a_cut_is_between_scores_or_nowhere():
    assert best_cut(np.array([0.0, 1.0, 2.0, 4.0]), np.array([False, False, True, True])) == 1.5
    assert best_cut(np.ones(4), np.array([True, False, True, False])) == np.inf
    assert best_cut(np.array([3.0, 0.0]), np.array([False, True])) == np.inf  # below chance is no cut
    with pytest.raises(InputError, match="all or of none"):
        best_cut(np.ones(3), np.ones(3, dtype=bool))


def test_a_token_counts_its_two_strongest_features_and_no_filler():
    x = torch.tensor([[5.0, 1.0, 3.0], [0.0, 0.0, 2.0], [-1.0, -2.0, 0.0]])
    second = 1 - np.log(2) / np.log(3)
    torch.testing.assert_close(scored(x), torch.tensor([5 + 3 * second, 2, 0]).float())
    assert scored(torch.tensor([[7.0]])).tolist() == [7.0]


def test_feature_0_stands_in_for_nothing(world):
    """Neuron 0 fires for N, which every positive sequence has: neither O nor what follows from it has any of it."""
    subject, _, neuron, contrast = world
    assert neuron == 0
    fitting, base = Fitting(subject, contrast, Neurons(), (0,)), RuleBase.parse(RULES)
    carry = carried(subject, contrast, base)
    told = telling(fitting, carry, ("element N", "element O", "bad"), np.arange(len(contrast)), 10)
    assert told[0, "element N"][0] == 0
    assert 0 not in told[0, "element O"] + told[0, "bad"]
    assert len(told[0, "element O"]) < 10


def test_what_is_concluded_is_carried_by_what_it_was_concluded_from(world):
    subject, *_ = world
    texts = ["CNF", "CCN", "COC", "CNO"]
    columns = {"sequence": texts, "label": [*"abab"], "heavy": ["yes", "no", "", "no"], "element F": [0, 0, 0, 1]}
    contrast = Contrast.read(subject, pl.DataFrame(columns), "label", group="sequence")
    rows = carried(subject, contrast, RuleBase.parse(f"{RULES}; heavy or logP > 9 -> dull; not element F -> plain"))
    assert rows[0]["element N"].nonzero()[0].tolist() == [2]
    assert not rows[0]["element F"].any()  # the column, which comes before the domain's own
    assert rows[3]["element F"].nonzero()[0].tolist() == [1, 2, 3]  # a column is about whole sequences
    assert rows[1]["good"].nonzero()[0].tolist() == [3]
    assert not rows[3]["good"].any()  # F is there, so nothing follows
    assert rows[1]["plain"].nonzero()[0].tolist() == [1, 2, 3]  # from a negation alone: all of them
    assert [row["dull"].any() if "dull" in row else None for row in rows] == [True, False, None, False]
    assert {"heavy", "good"}.isdisjoint(rows[2])  # not known, of O no rule says that it is no good
    part = contrast.rows(np.array([1, 0]))
    assert part.marks["heavy"].tolist() == [0, 1]
    assert part.sha256 != contrast.rows(np.array([0, 1])).sha256
    for rules, message in [
        ("element Nn -> x", "did you mean 'element N'"), ("logP -> x", "give it a bound"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            carried(subject, contrast, RuleBase.parse(rules))


def test_columns_of_yes_and_no():
    table = pl.DataFrame(
        {"index": [0, 1, 2], "sequence": ["1", "0", "1"], "a": ["Yes", "no ", "NA"], "b": [1.0, 0.0, None],
         "c": [True, False, True], "d": [1, 1, 1], "e": [0, 1, 2], "f": ["yes", "maybe", "no"], "g": [[1], [2], [3]]},
    )  # fmt: skip
    found = {name: column.tolist() for name, column in yes_no(table).items()}
    assert {*found} == {"a", "b", "c"}
    np.testing.assert_equal(found["a"], [1, 0, np.nan])
    np.testing.assert_equal(found["b"], [1, 0, np.nan])


def test_rules_write_what_they_conclude_and_say_why(world):
    subject, weights, neuron, contrast = world
    fit = DIRECTIONS["rules"].fit
    edit = fit(subject, contrast, components=Neurons(), layers=(0,), rules="element N -> good", k=1).edits[0]
    assert float(edit.direction[0] @ weights["a"]) == pytest.approx(1, abs=1e-3)
    assert edit.where == Tokens("masked")
    away = fit(subject, contrast, components=Neurons(), layers=(0,), rules="element O -> bad", k=1).edits[0]
    assert float(away.direction[0] @ weights["other"]) == pytest.approx(-1, abs=1e-3)
    found = reasoner(Fitting(subject, contrast, Neurons(), (0, 1)), RULES.replace(" and not element F", ""))
    assert found.rates() == {"good": (1, 0), "bad": (0, 1)}
    assert found.detectors["element N"].units[0] == neuron
    assert found.detectors["element N"].sequence.held == found.detectors["element N"].token.held == 1
    first = found.closures([contrast.examples[contrast.positive[0]]])[0]
    assert first.proof("good") == "good, for element N, by: element N -> good"
    assert {*found.held.tolist()} < {*range(len(contrast))}


@torch.no_grad()
def test_the_edit_is_a_share_of_the_length_of_the_state_at_masked_sites(world):
    subject, *_, contrast = world
    edits = DIRECTIONS["rules"].fit(subject, contrast, components=Neurons(), layers=(0,), rules="element N -> good")
    batch, site = subject.tokenize(["CCN"]), edits.edits[0].components.names[0]
    batch.ids[0, 2] = subject.mask_id
    plain, moved = (subject.run(batch, plan=plan, capture=[site]).captured[site][0] for plan in (None, edits.plan(0.5)))
    change = (moved - plain).norm(dim=-1)
    assert torch.nonzero(change).tolist() == [[2]]
    assert float(change[2]) == pytest.approx(0.5 * float(plain[2].norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("element F -> x", "'element F' holds of no sequence"),
        ("element N -> x; element O and not x -> y", "'y' holds of no sequence .* known to be false"),
        ("element C -> x", "no feature is stronger where 'element C' is"),
        ("element S -> x and y -> z", "lacks the end"),
        ("nitrogen -> x", "no column of yes and no and no concept"),
    ],
)
def test_what_no_rule_can_use_is_said_in_a_line(world, rules, message):
    subject, *_, contrast = world
    with pytest.raises(InputError, match=message) as caught:
        DIRECTIONS["rules"].fit(subject, contrast, layers=(0,), rules=rules)
    assert "\n" not in str(caught.value)


def test_heads_are_no_components_of_rules(world):
    subject, *_, contrast = world
    with pytest.raises(InputError, match="need features or neurons"):
        DIRECTIONS["rules"].fit(subject, contrast, components=Heads(), rules="a -> b")


def test_rules_from_a_table_with_columns(world):
    subject, *_ = world
    texts, labels = planted.sequences(40, 3)
    table = pl.DataFrame({"smiles": texts, "label": labels, "amine": ["N" in t for t in texts], "g": range(80)})
    found = isotrace.steer(
        subject, table, label="label", group="g", method="rules", setting=("rules=amine -> good",), layers=0, dose=0.01,
        starts=1, designs=1, twins=1, confounds="free",
    )  # fmt: skip
    assert found.summary["method"] == "rules"
    assert found.summary["dose"]["kl"] == pytest.approx(0.01, rel=0.05)

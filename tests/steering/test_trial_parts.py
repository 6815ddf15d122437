"""Parts of a trial by hand: the window, twins at a dose, order of doses, composition control, verdicts."""

import re
from dataclasses import replace
from math import isnan
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.base.work import Memo
from isotrace.domains.domain import domain_of
from isotrace.report.steer.designs import designs_of
from isotrace.report.steer.figure import response
from isotrace.report.steer.words import verdict
from isotrace.steering.contrast import Contrast
from isotrace.steering.decoding.run import Design, Designs
from isotrace.steering.dose import Window, perplexities
from isotrace.steering.edits import Calibrated
from isotrace.steering.trials.arm import Arm, Workshop, start_means
from isotrace.steering.trials.composition import composition, inserted, most_inserted, part, undo
from isotrace.steering.trials.judge import Exact
from isotrace.steering.trials.safety import Checked, Safety, check_reader, development_starts, perplexity, safety
from isotrace.steering.trials.settings import TrialSettings
from isotrace.steering.trials.table import dose_row, rising
from isotrace.steering.trials.trial import Trial
from isotrace.steering.trials.twins import Twins

NAN = float("nan")
STARTS = ("CCOCC", "CCCCC", "CCCOC", "COCCC")
MOLECULE = domain_of("molecule")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), tmp_path_factory.mktemp("reader") / "bert"))


def arm_of(dose, effects):
    return Arm(dose, Calibrated(1.0, dose, dose), effects=np.asarray(effects, float))


def written(subject, texts, value, dose=0.0):
    """An arm with one design of each start; what is no text is not valid."""
    rows = tuple(Design(i, text or "C(", None if text else "why", 1) for i, text in enumerate(texts))
    values = np.asarray([value(text) if text else NAN for text in texts])
    return Arm(dose, None, None, Designs("by hand", {}, rows, (), (), 0, {}), values)


def workshop_of(subject, value):
    return Workshop(subject, MOLECULE, Exact(value), STARTS, TrialSettings(), None, Memo(None))


def test_the_mean_over_a_start_leaves_out_what_is_not_valid():
    rows = [Design(at, "C", None, 1) for at in (0, 0, 1, 2)]
    found = start_means(rows, np.asarray([1.0, NAN, NAN, 3.0]), 4)
    assert found[[0, 2]].tolist() == [1, 3]
    assert np.isnan(found[[1, 3]]).all()


def test_p_counts_the_twins_that_go_as_far_at_the_same_dose():
    twins = Twins({"random": {0.1: np.asarray([0.0, 1.0, 2.0, NAN]), 0.2: np.asarray([5.0, NAN, NAN, NAN])}})
    assert twins.p(arm_of(0.1, [1.0, 1.0])) == 3 / 4
    assert twins.p(arm_of(0.2, [1.0])) == 1
    beside = twins.beside(arm_of(0.1, [3.0]))
    assert beside == {"random": 3, "random_mean": 1, "random_sd": 1, "random_p": 1 / 4, "p": 1 / 4}
    none = {"random": 0, "random_mean": None, "random_sd": None, "random_p": None, "p": None}
    assert twins.beside(arm_of(0.3, [1.0])) == none
    assert isnan(twins.p(arm_of(0.1, [NAN])))
    two = Twins({**twins.effects, "shuffled": {0.1: np.asarray([4.0]), 0.2: np.asarray([NAN])}})
    assert [two.p(arm_of(0.1, [3.0]), name) for name in ("random", "shuffled", None)] == [1 / 4, 1, 1]
    assert isnan(two.p(arm_of(0.2, [9.0]))), "of one null nothing is known"
    assert isnan(Twins({}).p(arm_of(0.1, [1.0])))


def test_the_order_of_doses_is_told_from_three_on():
    arms = [arm_of(d, [d, -d, 0.0, NAN]) for d in (0.1, 0.2, 0.3)]
    found = rising(arms, 0)
    assert (found["median"], found["starts"]) == (
        0,
        2,
    )  # one rises, one falls, one is flat, one lacks a dose
    assert found["ci"] == [-1, 1]
    assert isnan(rising(arms[:2], 0)["median"])
    assert rising([arm_of(d, [d, d * 2]) for d in (0.1, 0.2, 0.3)], 0)["ci"] == [1, 1]


def test_the_window_is_that_of_the_development_designs():
    rows = [Checked(0, 0.1, 5.0, 40, 40, 2), Checked(0.1, 0.14, 5.9, 40, 40, 0), Checked(0.2, 0.1, 6.1, 40, 40, 0)]
    other: Any = SimpleNamespace(source="other")
    found = safety(rows, other, 20)
    assert (found.window.largest, found.reader, found.starts) == (0.1, "other", 20)
    assert "perplexity is 6.1" in str(found.window.ends)
    assert [found.holds(dose) for dose in (0.1, 0.2)] == [True, False]
    assert safety(rows, None, 20).window == Window(0.2, None)  # perplexities that are there are not looked at
    assert safety([replace(rows[0], valid=0), *rows[1:]], None, 20).window.largest == 0
    none = [rows[0], Checked(0.1, NAN, NAN, 40, 0, 0)]
    assert "no design is readable" in str(safety(none, None, 20).window.ends)


def test_perplexity_is_over_what_the_reader_can_read(relu_subject, reader):
    texts = ["CCO", "CCN", "CCO", "C" * 40]
    value, unread = perplexity(reader, relu_subject, [(text, "C") for text in texts])
    each = perplexities(reader, [reader.tokenize([text]) for text in texts[:3]], relu_subject)
    assert unread == 1
    assert value == pytest.approx(np.exp(np.log(each).mean()), rel=1e-5)
    none, unread = perplexity(reader, relu_subject, [("C" * 40, "C")])
    assert isnan(none)
    assert unread == 1


def test_a_reader_that_translates_reads_the_start_too(relu_subject, tmp_path):
    model = tiny.tiny_model("bart", translating=True, decoder_start_token_id=0)
    translating = tiny.load_tiny(tiny.save_subject(model, tmp_path / "bart"))
    found = []
    for source in ("CC", "CCCN"):
        pair = translating.tokenize(["CCO"], [source])
        logits = translating.run(pair).logits
        assert logits is not None
        said = logits[0].log_softmax(-1)
        own = said[:3].gather(1, pair.ids[0, 1:4, None])  # without the token that ends it
        found.append(perplexity(translating, relu_subject, [("CCO", source)])[0])
        assert found[-1] == pytest.approx(float(own.mean().neg().exp()), rel=1e-5)
    assert found[0] != found[1]


def test_a_reader_is_another_subject_of_the_domain_that_predicts(relu_subject, reader, tmp_path):
    check_reader(reader, relu_subject)
    with pytest.raises(InputError, match="its own likely"):
        check_reader(relu_subject, relu_subject)
    folder = tiny.save_subject(tiny.tiny_model("bert", "Model"), tmp_path / "headless")
    with pytest.raises(SubjectError, match="no language-model head"):
        check_reader(tiny.load_tiny(folder), relu_subject)
    protein = tiny.load_subject(folder, domain="protein")
    with pytest.raises(InputError, match="same domain"):
        check_reader(protein, relu_subject)


def test_development_starts_are_none_of_those_told(relu_subject, tmp_path):
    texts = [f"{'C' * (i // 2 + 1)}{'NO'[i % 2]}" for i in range(12)]
    contrast = Contrast.of(relu_subject, texts, ["no" if i % 2 else "yes" for i in range(12)], positive="yes")
    negative = texts[1::2]
    told = ("OCC", negative[4])  # the first is another way to write CCO
    assert development_starts(relu_subject, MOLECULE, contrast, told, 3) == ("CO", "CCCO", "CCCCO")
    with pytest.raises(InputError, match="left for development"):
        development_starts(relu_subject, MOLECULE, contrast, negative, 3)
    causal = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("gpt2"), tmp_path / "gpt2"))
    assert development_starts(causal, MOLECULE, contrast, ("N", "NC"), 3) == ("C", "CC", "C")


def test_what_is_inserted_and_how_it_is_undone():
    assert inserted("CCO", "CNO") == [(1, "C")]
    assert inserted("CCO", "CCNNO") == [(2, ""), (3, "")]
    assert undo(MOLECULE, "CCO", "CNO", "N") == ("CCO", 1, 1)
    assert undo(MOLECULE, "CCO", "CCNO", "N") == ("CCO", 1, 1)
    # of a branch neither an end nor its only atom can go
    assert undo(MOLECULE, "CCO", "CC(F)O", "(F") == ("CC(F)O", 0, 2)
    assert undo(MOLECULE, "CCO", "CNNO", "") == ("CNNO", 0, 0)


def test_part_kept_is_a_ratio_of_means_over_the_same_starts():
    found = part(np.asarray([2.0, 2.0, 2.0, NAN]), np.asarray([1.0, 1.0, 1.0, 9.0]), 0)
    assert (found.effect, found.kept, found.starts) == (1, 0.5, 3)
    assert found.kept_ci == (0.5, 0.5)
    assert isnan(part(np.asarray([NAN]), np.asarray([1.0]), 0).kept)


def test_an_effect_of_counts_is_taken_out_and_one_of_order_stays(relu_subject):
    """Designs put N for C. Of a judge that counts N nothing is left; of one that asks for an N at the end all of what
    the count does not say."""
    rng = np.random.default_rng(0)
    natural = ["".join(rng.choice([*"CCNO"], rng.integers(3, 9))) for _ in range(60)]
    natural = [text for text in natural if text.strip("C")]
    labels = [text.count("N") for text in natural]
    told = Contrast.of(relu_subject, natural, labels, kind="regression")
    texts = ["CNOCN", "CCNCN", "CCNON", "CONCN"]
    for value, left in ((lambda text: text.count("N"), 0.0), (lambda text: float(text.endswith("N")), None)):
        shop = workshop_of(relu_subject, value)
        plain, steered = written(relu_subject, STARTS, value), written(relu_subject, texts, value, 0.1)
        steered = replace(steered, effects=steered.values - plain.values)
        found = composition(shop, told, plain, steered)
        assert found.tokens[0] == "N"
        assert found.undone == 1
        assert found.without.effect == 0
        if left is not None:
            assert found.explained > 0.99
            assert found.regressed.effect == pytest.approx(0, abs=0.02)
        else:
            assert 0.2 < found.regressed.kept < 1
    same = written(relu_subject, STARTS, len)
    assert most_inserted(workshop_of(relu_subject, len), same, same) == ()


def test_an_effect_is_that_of_the_last_round_and_the_first_stands_beside_it(relu_subject, monkeypatch):
    shop, made = workshop_of(relu_subject, len), iter([(1, 2), (5, 9)])

    def designs(*_):
        first, last = ([Design(i, "C" * n, None, n, early=n in (1, 5)) for i in range(4)] for n in next(made))
        return Designs("by hand", {}, (*last,), (*first,), (), 0, {})

    monkeypatch.setattr(Workshop, "_designs", designs)
    plain = shop.arm("told 0", 0.0, None)
    steered = shop.arm("told 0.1", 0.1, None, plain)
    assert (plain.effect, steered.effect, dose_row(steered, 0)["first_round"]) == (0, 7, 4)
    found = replace(trial_of([UP], NOUGHT), judge=shop.judge, starts=STARTS)
    told = designs_of(found, steered)
    assert told["judged"].to_list() == [5.0] * 4 + [9.0] * 4
    assert told["round"].to_list() == [5] * 4 + [9] * 4


def trial_of(effects, twins, window=Window(0.3, None)):  # noqa: B008
    """Of doses 0.1, 0.2, …"""
    doses = [0.1 * (i + 1) for i in range(len(effects))]
    arms = (arm_of(0.0, [0, 0, 0]), *(arm_of(d, e) for d, e in zip(doses, effects, strict=True)))
    found = Twins({null: {dose: np.asarray(rows, float) for dose in doses} for null, rows in twins.items()})
    held = Safety(replace(window, largest=window.largest and window.largest + 1e-9), (), None, 3)
    return Trial(MOLECULE, *[None] * 3, STARTS[:3], arms, held, found, TrialSettings(), {}, None)  # pyright: ignore


UP, FLAT, NOUGHT = [1.0, 1.1, 1.2], [-1.0, 0.0, 1.0], {"random": [0.0] * 20}


@pytest.mark.parametrize(
    ("effects", "twins", "window", "said"),
    [
        ([UP, UP], NOUGHT, Window(0.2, None), "none or few as far"),
        ([FLAT, UP], NOUGHT, Window(0.2, None), "an effect at a single dose is none"),
        ([UP], NOUGHT, Window(0.1, None), "an effect at a single dose is none"),
        ([UP, FLAT], NOUGHT, Window(0.2, None), "Nothing shows"),
        ([UP, FLAT], NOUGHT, Window(0.1, "x"), "an effect at a single dose is none"),
        ([UP, UP], {"random": [2.0] * 20}, Window(0.2, None), "so do random directions"),
        ([UP, UP], NOUGHT | {"shuffled": [2.0] * 20}, Window(0.2, None), "so do directions of shuffled labels"),
        ([UP, UP], {"random": [0.0] * 3}, Window(0.2, None), "too few to tell"),
        ([UP, UP], {"random": []}, Window(0.2, None), "no random direction was tried"),
        ([UP, UP], NOUGHT, Window(0.0, "half are degenerate"), "No dose is safe.*half are degenerate"),
    ],
)
def test_verdicts_are_read_at_the_largest_safe_dose(effects, twins, window, said):
    found = verdict(trial_of(effects, twins, window), "logp")
    assert re.search(said, found), found


def test_the_figure_greys_what_is_not_safe():
    rows = [{"dose": d, "effect": d, "ci": [0, 1], "safe": d < 0.2} for d in (0.0, 0.1, 0.2)]
    plain = response(rows[:2], [{"null": "random", "dose": 0.1, "effects": [0.5, 0.25]}], "x")
    assert plain.count("random: ") == 2
    assert "not safe" not in plain
    assert response(rows, [], "x").count("not safe") == 1

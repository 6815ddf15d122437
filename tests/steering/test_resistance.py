"""What a subject undoes: known depths, known reversals, and what works against an edit."""

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.interventions import Intervention, Plan, Residuals, Select, Set
from isotrace.steering import Edits, RemoveEdit
from isotrace.steering.response.resistance import Reversals, persistence, resistance, resisted, resisters, reversals
from tiny_edits import one_of

TEXTS = ["CCO", "c1cc[nH]c1", "CC(=O)N"]


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """Blocks behind the first write nothing, so that its stream goes on as it is."""
    model = tiny.tiny_model("esm-rotary")
    for block in model.base_model.encoder.layer[1:]:
        for last in (block.attention.output.dense, block.output.dense):
            last.weight.data.zero_()
            last.bias.data.zero_()
    return tiny.load_tiny(tiny.save_subject(model, tmp_path_factory.mktemp("idle") / "esm"))


def test_what_nobody_touches_persists(idle):
    edits = Edits((one_of("add", idle),))
    found = persistence(idle, edits, [idle.tokenize(TEXTS)], 0.5, n_twins=3)
    assert found.layers == (0, 1, 2)
    np.testing.assert_allclose(found.own, 1, rtol=1e-4)
    np.testing.assert_allclose(found.twins, np.ones((3, 3)), rtol=1e-4)


def test_what_is_taken_out_is_gone(idle):
    """A subject that removes the direction behind layer 1, and half of it there in another run."""
    edit = one_of("add", idle)
    for share, left in ((1.0, 0.0), (0.5, 0.5)):
        resister = RemoveEdit(components=Residuals(), layer=1, direction=edit.direction)
        plan = resister.plan(share)
        batch = idle.tokenize(TEXTS)
        with idle.edited(plan.on(idle, batch)):
            found = persistence(idle, Edits((edit,)), [batch], 0.5, n_twins=2)
        np.testing.assert_allclose(found.own, [1, left, left], atol=1e-4)
        assert (found.twins[:, 1:] > left).all(), "twins point elsewhere"


def test_what_persistence_is_of(idle):
    with pytest.raises(InputError, match="one direction added to the residual stream"):
        persistence(idle, Edits((one_of("gain", idle),)), [], 0.5)
    nothing = persistence(idle, Edits((one_of("add", idle),)), [idle.tokenize(TEXTS)], 0.0, n_twins=1)
    assert np.isnan(nothing.own).all()


def rows(*texts):
    return [torch.tensor([*map(ord, text)]) for text in texts]


def test_reversals_by_hand():
    found = reversals(rows("AAAA", "CCCC", "GG"), rows("ABBA", "CCCC", "GGG"), rows("AABC", "DCCC", "GGG"))
    assert [found.written.tolist(), found.back.tolist(), found.other.tolist()] == [[2, 0], [1, 0], [0, 0]]
    assert (found.rate, found.lost) == (0.5, 1)
    moved = reversals(rows("AAAA"), rows("BBBB"), rows("CCAA"))
    assert (moved.back.item(), moved.other.item()) == (2, 2)
    assert np.isnan(reversals(rows("AA"), rows("AA"), rows("CA")).rate)


def counted(written, back):
    return Reversals(np.array(written), np.array(back), np.zeros(len(back), int), 0)


def test_resistance_stands_beside_its_twins():
    """Own sites are set back half of the time, those of twins one in ten; then all alike."""
    rng = np.random.default_rng(0)
    draw = lambda p: counted([10] * 50, rng.binomial(10, p, 50))  # noqa: E731
    clear = resistance(draw(0.5), [draw(0.1) for _ in range(20)])
    assert clear.excess == pytest.approx(0.4, abs=0.05)
    assert 0.3 < clear.interval[0] < clear.excess < clear.interval[1] < 0.5
    assert clear.rank == 1
    covered = [resistance(draw(0.2), [draw(0.2) for _ in range(20)]).interval for _ in range(20)]
    assert sum(low <= 0 <= high for low, high in covered) >= 16
    with pytest.raises(InputError, match="alone says nothing"):
        resistance(draw(0.5), [])


def test_a_generator_that_sets_back_what_one_edit_wrote(rotary):
    """It writes N for C under any plan and, unsteered, takes it back in every third start: for edit and twins alike."""
    starts = ["CCO", "CCN", "CCF"]

    def write(texts, plan):
        if len(plan):
            return [text.replace("C", "N") for text in texts]
        return [text.replace("NN", "CC") if text.endswith("O") else text for text in texts]

    found = resisted(rotary, Edits((one_of("add", rotary),)), starts, write, 0.5, n_twins=4)
    assert (found.own, found.excess, found.rank) == (1 / 3, 0.0, 5)


def test_features_that_work_against_an_edit(rotary):
    """A stream that is set to one vector shows the same features in every sequence."""
    dictionary = tiny.random_dictionary(rotary)
    batches = [rotary.tokenize([text]) for text in TEXTS]
    vector = 5 * torch.randn(16, generator=torch.Generator().manual_seed(7))
    plan = Plan.of(Intervention(Residuals(), Set(vector), Select((0,))))
    found = resisters(rotary, dictionary, batches, plan)

    def active(plan):
        sites = dictionary.config.reads
        runs = [rotary.run(batch, plan=plan, capture=sites).captured for batch in batches]
        rows = [[dictionary.encode(i, run[site]).dense(12)[0, 1:-1] for i, site in enumerate(sites)] for run in runs]
        return torch.stack([torch.stack([(x > 0).any(0) for x in row]) for row in rows]).float()

    before, after = active(Plan()), active(plan)
    expected = torch.nonzero((before.sum(0) == 0) & (after.mean(0) >= 0.8)).tolist()
    assert found == [tuple(pair) for pair in expected]
    assert resisters(rotary, dictionary, batches, Plan()) == []

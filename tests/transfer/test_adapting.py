"""The five methods on tiny subjects: what they learn, what stays as it was, and what a killed training goes on to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapting_table import DOMAIN, table

import tiny
from isotrace.base.errors import InputError, RunError
from isotrace.base.work import claimed
from isotrace.subjects.subject import load_subject
from isotrace.transfer.adapting import training
from isotrace.transfer.adapting.head import Head, loss, scale_of
from isotrace.transfer.adapting.method import METHODS, adapt
from isotrace.transfer.adapting.methods import probe, probe_all
from isotrace.transfer.adapting.saving import save_adapted
from isotrace.transfer.adapting.scoring import HeldOut, forest_outputs
from isotrace.transfer.adapting.settings import AdaptSettings

FEW = AdaptSettings(steps=12, every=4, batch=16, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def _few_strengths(monkeypatch):
    """Three in place of thirteen."""
    monkeypatch.setattr(probe, "STRENGTHS", {task: found[2::4] for task, found in probe.STRENGTHS.items()})
    monkeypatch.setattr(probe_all, "PENALTIES", probe_all.PENALTIES[4::3])


@pytest.fixture(scope="module")
def subject(folders):
    return tiny.load_tiny(folders["esm-rotary"])


def outputs(found, of):
    return found.readout.outputs(found.subject, of.examples)


@pytest.mark.parametrize("method", METHODS)
def test_a_property_is_learned_and_the_subject_stays(subject, method):
    """The number of nitrogens, which the tokens give away; a start from zero outputs is R² 0 on what is learned."""
    of = table(subject, "number", "first")
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    settings = FEW if method.startswith("probe") else replace(FEW, steps=60, every=10, learning_rate=1e-2)
    found = adapt(subject, DOMAIN, of, method, settings)
    rows, own = of.rows("train"), outputs(found, of)
    y = of.y[rows]
    assert 1 - np.mean((own[rows, 0] - y[:, 0]) ** 2) / y[:, 0].var() > 0.5
    assert (own[rows, 1:].argmax(1) == y[:, 1]).mean() > 0.6
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    changed = any(not torch.equal(p, before[n]) for n, p in found.subject.model.state_dict().items() if n in before)
    assert changed != found.frozen
    assert not any(p.requires_grad for p in found.subject.model.parameters())


NIGHTLY = pytest.mark.nightly
VARIANTS = ("albert", "gpt2", "t5-gated", "molformer", "bert")


@pytest.mark.parametrize("kind", [VARIANTS[0], VARIANTS[1], *(pytest.param(v, marks=NIGHTLY)
                                                                 for v in VARIANTS[2:])])  # fmt: skip
@pytest.mark.parametrize(
    "method", ["lora", pytest.param("full", marks=NIGHTLY), pytest.param("scratch", marks=NIGHTLY)]
)
def test_what_is_saved_is_what_was_trained(folders, kind, method, tmp_path):
    """Shared layers (ALBERT), transposed linear maps (GPT-2), stacks of two kinds (T5), linear attention."""
    subject = tiny.load_tiny(folders[kind])
    of = table(subject, "number")
    found = adapt(subject, DOMAIN, of, method, replace(FEW, steps=6, every=6, learning_rate=1e-2))
    expected = outputs(found, of)
    save_adapted(found.subject, found.readout, of, tmp_path, by=method, frozen=found.frozen)
    back = load_subject(tmp_path)
    assert np.allclose(found.readout.outputs(back, of.examples), expected, atol=1e-5)
    assert not np.allclose(found.readout.outputs(subject, of.examples), expected, atol=1e-3)


def test_frozen_weights_are_saved_as_they_are(subject, tmp_path):
    of = table(subject, "oxygen")
    found = adapt(subject, DOMAIN, of, "probe", FEW)
    save_adapted(found.subject, found.readout, of, tmp_path, by="probe", frozen=True)
    assert load_subject(tmp_path).files.weights_sha256 == subject.files.weights_sha256


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=NIGHTLY)])
def test_a_killed_training_goes_on_to_the_same_weights(subject, method, tmp_path, monkeypatch):
    of = table(subject, "number")
    settings = replace(FEW, lora_dropout=0.3, spellings=2)
    whole = outputs(adapt(subject, DOMAIN, of, method, settings), of)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)

    def killed(items, label):
        for i, item in enumerate(items):
            if i == 9 and label.startswith(method):
                raise KeyboardInterrupt
            yield item

    with claimed(tmp_path / "work", "key") as work:
        with pytest.raises(KeyboardInterrupt):
            adapt(subject, DOMAIN, of, method, settings, work=work, progress=killed)
        steps = []

        def counted(items, label):
            items = list(items)
            steps.append(len(items))
            return items

        again = adapt(subject, DOMAIN, of, method, settings, work=work, progress=counted)
    assert steps == [4]  # of 12, the first 8 are on disk
    assert np.array_equal(outputs(again, of), whole)


def test_the_best_of_the_validation_part_stands(subject, monkeypatch):
    """Losses given from outside: the third look is the best, and two more end the training."""
    losses = iter([3.0, 2.0, 1.0, 1.5, 1.2, 0.1])
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(losses))
    of = table(subject, "number")
    found = adapt(subject, DOMAIN, of, "full", replace(FEW, steps=60, every=2, patience=2))
    assert [point.step for point in found.points] == [2, 4, 6, 8, 10]
    assert found.chosen.startswith("step 6 of 10")
    # one that ends at its best with the same schedule has the weights of that look
    monkeypatch.setattr(training, "validation_loss", lambda _, head, __: float(next(falling)))
    falling = iter([3.0, 2.0, 1.0, *[9.0] * 30])
    other = adapt(subject, DOMAIN, of, "full", replace(FEW, steps=60, every=2, patience=1))
    assert np.array_equal(outputs(other, of), outputs(found, of))


def test_labels_that_are_missing_leave_the_loss_alone(subject):
    of = table(subject, "number", "oxygen", "first")
    y = torch.from_numpy(of.y)
    scale = scale_of(np.eye(len(y), 4), of, np.arange(len(y)))
    given = torch.randn(len(y), of.n_outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given.requires_grad_(True)
    some = y.clone()
    some[:30, 0] = torch.nan
    value = loss(given, some, of.properties, scale)
    (slope,) = torch.autograd.grad(value, given)
    assert not slope[:30, 0].any()
    assert slope[30:, 0].all()
    z = (y[:, 0] - scale.y_mean[0]) / scale.y_sd[0]
    parts = ((given[:, 0] - z)[30:] ** 2).sum()
    parts = parts + torch.nn.functional.binary_cross_entropy_with_logits(given[:, 1], y[:, 1], reduction="sum")
    parts = parts + torch.nn.functional.cross_entropy(given[:, 2:], y[:, 2].long(), reduction="sum")
    assert value.item() == pytest.approx(parts.item() / (len(y) - 30 + 2 * len(y)))


def test_the_head_is_written_on_raw_states(subject):
    """Pooled states of any mean and scale: head and readout agree, numbers in the unit of the labels."""
    of = table(subject, "number", "first")
    x = np.random.default_rng(0).normal(50, 7, (len(of.y), 6)) * np.array([1, 2, 3, 4, 5, 0])
    scale = scale_of(x, of, np.arange(len(x)))
    head = Head(scale, "mean")
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    weight, bias = head.weights()
    expected = head(torch.from_numpy(x).float()).detach().numpy() * scale.y_sd + scale.y_mean
    assert np.allclose(x @ weight + bias, expected, atol=1e-4)


def test_adapters_touch_linear_maps_of_the_layers_alone(subject):
    of = table(subject, "number")
    found = adapt(subject, DOMAIN, of, "lora", replace(FEW, steps=2, every=2, rank=2))
    before, after = subject.model.state_dict(), found.subject.model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if ".encoder.layer." in n and n.endswith("weight") and before[n].ndim == 2}
    differences = [after[name] - before[name] for name in changed]
    assert max(int(torch.linalg.matrix_rank(d, tol=1e-5)) for d in differences) == 2


def test_atoms_are_read_one_by_one(subject):
    of = table(subject, "site")
    found = adapt(subject, DOMAIN, of, "full", replace(FEW, steps=60, every=10, learning_rate=1e-2))
    own = outputs(found, of)
    assert own.shape == (len(of.y), 1)
    part = HeldOut.of(of, 20, 0)
    assert part.draws([own[of.rows("test")]], 0)["site"]["auroc"][0] > 0.95
    with pytest.raises(InputError, match="leave --spellings out"):
        adapt(subject, DOMAIN, of, "full", replace(FEW, spellings=1))


def test_seeds_and_groups_are_drawn_together(subject):
    """Two seeds that miss by +1 and −1: the mean is that of their R², and draws of seeds widen the interval."""
    of = table(subject, "number")
    part, y = HeldOut.of(of, 400, 0), of.y[of.rows("test")]
    one, two = part.draws([y + 0.5], 0)["number"]["r2"], part.draws([y + 0.1, y + 0.5], 0)["number"]["r2"]
    first = part.draws([y + 0.1], 0)["number"]["r2"]
    assert two[0] == pytest.approx((one[0] + first[0]) / 2)
    assert {*np.round((two - one) / (first - one), 6)[1:]} == {0.0, 0.5, 1.0}


def test_a_forest_never_sees_the_test_labels(subject):
    of = table(subject, "number")
    test = of.rows("test")
    expected = forest_outputs(of, DOMAIN, 0)
    of.y[test] += 100
    assert np.allclose(forest_outputs(of, DOMAIN, 0), expected, rtol=1e-12)


def test_what_cannot_be_trained_is_told(subject, monkeypatch):
    of = table(subject, "number")
    with pytest.raises(InputError, match="no adaptation method 'magic'"):
        adapt(subject, DOMAIN, of, "magic", FEW)
    with pytest.raises(RunError, match=r"no number after .* smaller --learning-rate"):
        adapt(subject, DOMAIN, of, "full", replace(FEW, learning_rate=1e30))

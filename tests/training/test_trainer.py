"""One step of training: what it counts, what it refuses, and the schedules."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

import tiny
from isotrace.base.errors import RunError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.training.config import TrainingConfig
from isotrace.training.trainer import Job, Norms, Trainer, as_begun, resolved
from isotrace.training.world import World

D, TOKENS = 8, 40
CONFIG = DictionaryConfig("sae", "topk", (0, 1), D, D, 12, "layers.{}.resid_post", "layers.{}.resid_post", k=2)
BASE = TrainingConfig(
    tokens=4_000, batch_tokens=TOKENS, learning_rate=1e-2, warmup=0.01, auxiliary=0.0, dtype="float32"
)
CPU = torch.device("cpu")
SITES = ("layers.0.resid_post", "layers.1.resid_post")


def make(config=CONFIG, **changes):
    return Trainer(Job("one", config, replace(BASE, **changes)), SITES, World(), CPU)


def batch(seed=0, tokens=TOKENS):
    return torch.randn(2, tokens, D, generator=torch.Generator().manual_seed(seed))


def weights(trainer):
    return {name: value.clone() for name, value in trainer.dictionary.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_no_weight(value):
    trainer = make()
    trainer.step(batch(), batch())
    before, state = weights(trainer), trainer.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    bad = batch(1)
    bad[1, 3, 2] = value
    with pytest.raises(RunError, match="the loss is not finite: lower the learning rate and resume") as caught:
        trainer.step(bad, batch(1))
    assert "\n" not in str(caught.value)
    assert same(before, weights(trainer))
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], state)
    assert (trainer.steps, trainer.tokens) == (1, TOKENS)
    trainer.step(batch(2), batch(2))
    assert not same(before, weights(trainer))


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_not_finite_changes_no_weight(clip):
    """The loss is sound, its gradient is not."""
    trainer = make(clip=clip)
    before = weights(trainer)
    trainer.dictionary.W_dec[0].register_hook(lambda gradient: gradient.fill_(float("nan")))
    with pytest.raises(RunError, match="not finite"):
        trainer.step(batch(), batch())
    assert same(before, weights(trainer))


def norm(trainer):
    return float(torch.stack([p.grad.square().sum() for p in trainer.dictionary.parameters()]).sum().sqrt())


def test_the_gradient_is_clipped_or_left_alone():
    free, clipped, wide = make(clip=None), make(clip=0.05), make(clip=1e6)
    records = [trainer.step(batch(), batch(1)) for trainer in (free, clipped, wide)]
    assert len({record["gradient_norm"] for record in records}) == 1, "that before clipping"
    assert records[0]["gradient_norm"] > 0.5
    assert norm(free) == pytest.approx(records[0]["gradient_norm"], rel=1e-5)
    assert norm(clipped) == pytest.approx(0.05, rel=1e-4)
    for one, two, three in zip(*(t.dictionary.parameters() for t in (free, wide, clipped)), strict=True):
        assert torch.equal(one.grad, two.grad)
        torch.testing.assert_close(three.grad * records[0]["gradient_norm"] / 0.05, one.grad, rtol=1e-3, atol=1e-5)


def test_the_learning_rate_of_a_step_is_that_of_the_schedule():
    trainer = make(tokens=10 * TOKENS, warmup=0.3, final_rate=0.1)
    for step in range(10):
        trainer.step(batch(step), batch(step))
        expected = 1e-2 * trainer.job.training.rate(step / 10)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    assert trainer.done


def test_schedule():
    config = TrainingConfig(warmup=0.1, final_rate=0.05)
    assert [config.rate(p) for p in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1, 0.525, 0.05])
    assert 0 < config.rate(0.0) < 0.01
    assert TrainingConfig(warmup=1.0).rate(1.0) == pytest.approx(1)
    assert TrainingConfig(final_rate=0.0).rate(1.0) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValidationError):
        TrainingConfig(warmup=0.0)


def test_the_penalty_warms_up():
    """A weight that rises from nothing over its share of the run: the loss less the reconstruction."""
    config = replace(CONFIG, activation="relu", k=None)
    trainer = make(config, tokens=10 * TOKENS, penalty=0.5, penalty_warmup=0.4)
    shares = []
    for step in range(8):
        record = trainer.step(batch(step), batch(step))
        shares.append((record["loss"] - record["reconstruction"]) / record["penalty"] if step else None)
        assert ("penalty" in record) == (step > 0)
    assert shares[1:] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5], rel=1e-3)


def test_tokens_since_a_feature_was_active_are_counted():
    trainer = make(dead_after=3 * TOKENS)
    trainer.dictionary.b_enc[1].data[5] = -1e6
    since = torch.zeros(2, 12, dtype=torch.int64)
    for step in range(5):
        x = batch(step)
        with torch.no_grad():  # before the step moves the weights
            active = torch.stack([(trainer.dictionary.encode(s, x[s]).dense(12) > 0).any(0) for s in range(2)])
        record = trainer.step(x, x)
        assert record["dead"] == pytest.approx(float((since >= 3 * TOKENS).float().mean()))
        since = torch.where(active, 0, since + TOKENS)
        assert torch.equal(trainer.since, since)
    assert int(since[1, 5]) == 5 * TOKENS
    assert record["dead"] >= 1 / 24


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_auxiliary_loss_revives_dead_features(seed):
    """Eight of twelve features start below the other four, so that TopK seldom picks one of them."""
    mixing = torch.randn(12, D, generator=torch.Generator().manual_seed(seed))
    left = {}
    for auxiliary in (0.0, 1.0):
        config, changes = replace(CONFIG, layers=(0,)), {"auxiliary_k": 8, "clip": None, "tokens": 150 * TOKENS}
        trainer = make(config, auxiliary=auxiliary, dead_after=2 * TOKENS, **changes)
        trainer.dictionary.W_enc[0].data[:, 4:] *= 0.02
        trainer.dictionary.b_enc[0].data[:4] = 1
        generator, dead = torch.Generator().manual_seed(seed), []
        while not trainer.done:  # sparse combinations of twelve directions
            amounts = torch.rand(2, 1, TOKENS, 12, generator=generator)
            x = ((amounts[0] < 0.15) * amounts[1]) @ mixing
            record = trainer.step(x, x)
            dead.append(record["dead"])
            assert ("auxiliary" in record) == (auxiliary > 0 and record["dead"] > 0)
        assert max(dead[:10]) > 0.45
        left[auxiliary] = dead[-1]
    assert left[1.0] < left[0.0]


def test_a_block_is_used_in_batches_and_its_rest_is_left():
    trainer, twin, records = make(tokens=4 * TOKENS), make(tokens=4 * TOKENS), []
    mean, scale = torch.randn(2, D, generator=torch.Generator().manual_seed(3)), torch.tensor([2.0, 0.5])
    norms = Norms(mean, scale, [False, False])
    for seed in range(2):
        block = batch(seed, 3 * TOKENS - 1)
        trainer.train_block(block, norms, records.append)
        for start in (0, TOKENS):
            part = (block[:, start : start + TOKENS] - mean[:, None]) / scale[:, None, None]
            twin.step(part, part)
    assert [r["tokens"] for r in records] == [TOKENS, 2 * TOKENS, 3 * TOKENS, 4 * TOKENS]
    assert same(weights(trainer), weights(twin))
    assert trainer.done
    trainer.train_block(batch(5, 200), norms, records.append)
    assert len(records) == 4, "it does not train past its end"


def test_state_goes_there_and_back():
    trainer, other = make(), make(seed=1)
    for seed in range(3):
        trainer.step(batch(seed), batch(seed))
    other.restore(deepcopy(trainer.state()))
    for seed in range(3, 5):
        one, two = (t.step(batch(seed), batch(seed)) for t in (trainer, other))
        assert one["loss"] == two["loss"]
    assert same(weights(trainer), weights(other))
    assert torch.equal(trainer.since, other.since)
    assert (trainer.tokens, trainer.steps) == (other.tokens, other.steps)


def test_norms_and_massive_activations():
    x = 3 * torch.randn(2, 500, D, generator=torch.Generator().manual_seed(0)) + torch.arange(8.0)
    found = Norms.of(x)
    torch.testing.assert_close(found.mean, x.mean(1))
    torch.testing.assert_close(found.scale, (x - x.mean(1, keepdim=True)).square().mean((1, 2)).sqrt())
    assert found.massive == [False, False]
    median = float(x[1].abs().median())
    for factor, massive in ((99, False), (-99, False), (101, True), (-101, True)):
        x[1, 7, 3] = factor * median
        assert Norms.of(x).massive == [False, massive]
    mean, scale = found.at([1, 1, 0])
    assert torch.equal(mean, found.mean[[1, 1, 0]])
    assert torch.equal(scale, found.scale[[1, 1, 0]])


def test_token_normalisation_leaves_nothing_to_constants():
    trainer = make(replace(CONFIG, token_normalization="standardize"))
    mean_in, scale_in, mean_out, scale_out = trainer.constants(Norms.of(batch() + 5))
    assert float(mean_in.abs().sum()) == float(mean_out.abs().sum()) == 0
    assert torch.equal(scale_in, torch.ones(2))
    assert torch.equal(scale_out, torch.ones(2))


@pytest.mark.parametrize(("avx", "amx"), [(False, False), (True, False), (False, True)])
def test_the_dtype_follows_the_instructions_of_the_device(avx, amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    auto = TrainingConfig(dtype="auto")
    assert resolved(auto, CPU) == replace(auto, dtype="bfloat16" if avx or amx else "float32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: avx)
    assert resolved(auto, torch.device("cuda")).dtype == ("bfloat16" if avx else "float32")


def test_a_given_dtype_stays():
    for dtype in ("bfloat16", "float32", "float64"):
        given = TrainingConfig(dtype=dtype)
        assert resolved(given, CPU) is given
        assert given.rule_settings(keep_h=True).dtype == getattr(torch, dtype)


def test_a_resumed_run_keeps_its_dtype():
    job = Job("one", CONFIG, TrainingConfig(dtype="auto"))
    for dtype in ("bfloat16", "float32"):
        begun = {"jobs": [{"name": "one", "training": {"dtype": dtype}}]}
        assert as_begun([job], begun, CPU)[0].training.dtype == dtype
    assert as_begun([job], None, CPU)[0].training.dtype != "auto"


def test_a_hookpoint_the_stream_lacks(rotary):
    job = Job("one", tiny.random_dictionary(rotary, "sae").config, BASE)
    with pytest.raises(ValueError, match="not in tuple"):
        Trainer(job, SITES, World(), CPU)

"""Training: resuming is exact, failures keep the checkpoint, folding changes nothing."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from isotrace.activations.harvest import Corpus, masked_batches, mlp_activations
from isotrace.errors import RunError
from isotrace.training import loop
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import fold, harvest_blocks, initialise, schedule, train_dictionary
from isotrace.training.losses import reconstruction

CONFIG = TrainingConfig(
    tokens=1_600, batch_tokens=80, block_tokens=320, learning_rate=1e-2, auxiliary_k=2, dead_after=160,
    finetune_tokens=800, finetune_learning_rate=1e-3, dtype="float32",
)  # fmt: skip
# a random tokeniser-valid corpus is enough: what is learned does not matter here
STRINGS = [a + b for a in tiny.MOLECULES for b in tiny.MOLECULES]


class Stop(Exception):  # noqa: N818
    pass


@pytest.fixture
def corpus(rotary):
    return Corpus.of(rotary, STRINGS)


@pytest.fixture(autouse=True)
def short_statistics(monkeypatch):
    monkeypatch.setattr(loop, "STATISTICS_TOKENS", 320)


def shape(subject):
    return tiny.with_config(tiny.random_dictionary(subject, n_features=12, k=2, window=2))


def run(subject, corpus, folder, on_step=lambda record: None, **changes):
    return train_dictionary(subject, corpus, shape(subject), replace(CONFIG, **changes), folder / "c.pt", on_step)


def stop_at(n):
    """A callback that raises on the n-th step."""
    left = [n]

    def on_step(record):
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    return on_step


def assert_same(one, two):
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name


@pytest.fixture(scope="module")
def uninterrupted(request, tmp_path_factory):
    """The weights every resumed run must reach."""
    folders = request.getfixturevalue("folders")
    subject = tiny.load_tiny(folders["esm-rotary"])
    before, loop.STATISTICS_TOKENS = loop.STATISTICS_TOKENS, 320
    records = []
    result = run(subject, Corpus.of(subject, STRINGS), tmp_path_factory.mktemp("whole"), records.append)
    loop.STATISTICS_TOKENS = before
    return result, records


def test_training_reduces_the_loss(uninterrupted):
    dictionary, records = uninterrupted
    first = [r for r in records if r["phase"] == "reconstruct"]
    second = [r for r in records if r["phase"] == "finetune"]
    assert len(first) == CONFIG.tokens // CONFIG.batch_tokens
    assert [r["tokens"] for r in first] == list(range(80, 1_601, 80))
    assert second[-1]["tokens"] >= CONFIG.finetune_tokens
    assert sum(r["loss"] for r in first[-4:]) < 0.9 * sum(r["loss"] for r in first[:4])
    assert float(dictionary.density.max()) > 0
    assert float(dictionary.mean_activation.min()) >= 0


@pytest.mark.parametrize("step", [7, 13, 22])
def test_resuming_gives_the_same_weights(rotary, corpus, tmp_path, uninterrupted, step):
    """Stopped within a block after the first and after the third checkpoint, and while fine-tuning."""
    with pytest.raises(Stop):
        run(rotary, corpus, tmp_path, stop_at(step))
    assert (tmp_path / "c.pt").is_file()
    assert_same(uninterrupted[0], run(rotary, corpus, tmp_path))


def test_a_finished_run_is_not_trained_further(rotary, corpus, tmp_path, uninterrupted):
    run(rotary, corpus, tmp_path)
    steps = []
    assert_same(uninterrupted[0], run(rotary, corpus, tmp_path, steps.append))
    assert steps == []


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tiny
sys.path.insert(0, {here!r})
import test_loop as t
from pathlib import Path
subject = tiny.load_tiny(Path({folder!r}))
steps = []
def slow(record):
    steps.append(record)
    if len(steps) == 10:
        print("in the middle", flush=True)
        time.sleep(600)
t.run(subject, t.Corpus.of(subject, t.STRINGS), Path({out!r}), slow)
"""


def test_a_killed_process_resumes_to_the_same_weights(rotary, corpus, folders, tmp_path, uninterrupted):
    here = Path(__file__).parent
    script = SCRIPT.format(tests=str(here.parent), here=str(here), folder=str(folders["esm-rotary"]), out=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the middle\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert_same(uninterrupted[0], run(rotary, corpus, tmp_path))


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 1e-3}, {"tokens": 3_200}])
def test_other_settings_do_not_resume(rotary, corpus, tmp_path, change):
    with pytest.raises(Stop):
        run(rotary, corpus, tmp_path, stop_at(8))
    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(RunError, match="other settings"):
        run(rotary, corpus, tmp_path, **change)
    other = replace(shape(rotary), k=3)
    with pytest.raises(RunError, match="other settings"):
        train_dictionary(rotary, corpus, other, CONFIG, tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(rotary, corpus, folders, tmp_path, uninterrupted):
    """The subject's activations turn to NaN after the first checkpoint; with a sound subject the run goes on."""
    broken = tiny.load_tiny(folders["esm-rotary"])
    losses = []

    def poison(record):
        losses.append(record["loss"])
        if (tmp_path / "c.pt").exists():
            broken.module(broken.family.mlp_out, 1).bias.data.fill_(float("nan"))

    with pytest.raises(RunError, match="loss is not finite"):
        run(broken, corpus, tmp_path, poison)
    assert torch.isfinite(torch.tensor(losses)).all()
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert 0 < saved["state"]["tokens"] <= len(losses) * CONFIG.batch_tokens
    assert all(bool(torch.isfinite(v).all()) for v in saved["weights"].values())
    assert_same(uninterrupted[0], run(rotary, corpus, tmp_path))


def test_a_block_smaller_than_a_batch_is_refused(rotary, corpus, tmp_path):
    with pytest.raises(RunError, match="block_tokens"):
        run(rotary, corpus, tmp_path, batch_tokens=1_000_000)


def test_an_empty_corpus_is_refused(rotary, tmp_path):
    with pytest.raises(RunError, match="no sequence"):
        run(rotary, Corpus([]), tmp_path)


def test_folding_keeps_the_function_of_raw_activations(rotary64):
    dictionary = tiny.random_dictionary(rotary64, window=2)
    generator = torch.Generator().manual_seed(1)
    x = 3 + 5 * torch.randn(tiny.N_LAYERS, 40, rotary64.d_model, generator=generator)
    mean_in, mean_out = torch.randn(2, tiny.N_LAYERS, rotary64.d_model, generator=generator)
    scale_in, scale_out = 0.3 + torch.rand(2, tiny.N_LAYERS, generator=generator) * 4
    normalised = (x - mean_in[:, None]) / scale_in[:, None, None]
    expected = dictionary(normalised) * scale_out[:, None, None] + mean_out[:, None]
    active = [dictionary.encode(i, normalised[i]).dense(12) for i in range(tiny.N_LAYERS)]
    assert float((dictionary(x) - expected).abs().max()) > 1
    fold(dictionary, mean_in, scale_in, mean_out, scale_out)
    torch.testing.assert_close(dictionary(x), expected, rtol=1e-10, atol=1e-10)
    for layer, before in enumerate(active):
        torch.testing.assert_close(dictionary.encode(layer, x[layer]).dense(12), before, rtol=1e-10, atol=1e-10)


def test_the_auxiliary_loss_reaches_dead_features_only(rotary64):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, tiny.N_LAYERS, 30, rotary64.d_model, generator=generator)
    dead = torch.zeros(tiny.N_LAYERS, 12, dtype=torch.bool)
    dead[0, 2], dead[2, 5:8] = True, True

    def gradients(auxiliary):
        dictionary = tiny.random_dictionary(rotary64).requires_grad_(True)
        reconstruction(dictionary, x, y, dead, auxiliary, 2).total.backward()
        return dictionary, {name: p.grad for name, p in dictionary.named_parameters()}

    dictionary, without = gradients(0.0)
    _, with_it = gradients(0.5)
    d = rotary64.d_model
    for name, gradient in with_it.items():
        kind, _, layer = name.partition(".")
        extra, alive = gradient - without[name], ~dead[int(layer)]
        if kind == "b_dec":
            assert float(extra.abs().max()) == 0
            continue
        per_feature = extra.T if kind == "W_enc" else extra
        assert float(per_feature[alive].abs().max()) < 1e-14
        if int(layer) != 1:
            assert float(per_feature[dead[int(layer)]].abs().max()) > 1e-8
        if kind == "W_dec":
            assert float(per_feature[:, d:].abs().sum()) < 1e-14, "only the decoder into its own layer"
    assert dictionary.config.window == tiny.N_LAYERS


def test_blocks_are_real_tokens_in_another_order(rotary, corpus):
    """A block holds what its batches hold, shuffled, and the next block starts where it ended."""
    following, x, y, count = next(harvest_blocks(rotary, corpus, CONFIG, 0))
    assert x.shape == y.shape == (tiny.N_LAYERS, count, rotary.d_model)
    parts = []
    for number, batch, _ in masked_batches(rotary, corpus, 4_096, CONFIG.mask_rate, CONFIG.seed):
        if number == following:
            break
        parts.append(mlp_activations(rotary, batch)[0].flatten(1, 2))
    whole = torch.cat(parts, 1)
    assert torch.equal(whole.sort(1).values, x.sort(1).values)
    assert not torch.equal(whole, x)
    again = next(harvest_blocks(rotary, corpus, CONFIG, 0))
    assert torch.equal(again[1], x)
    later = next(harvest_blocks(rotary, corpus, CONFIG, following))
    assert later[0] > following
    assert not torch.equal(later[1][:, :50], x[:, :50])


def test_every_second_batch_is_masked(rotary, corpus):
    stream = masked_batches(rotary, corpus, 200, 0.3, seed=5)
    mask = rotary.tokenizer.mask_token_id
    batches = [next(stream) for _ in range(12)]
    for number, batch, chosen in batches:
        assert torch.equal(batch.ids == mask, chosen)
        assert bool((batch.ids[:, 0] == rotary.tokenizer.cls_token_id).all()), "special tokens stay"
        assert bool((batch.ids[:, -1] == rotary.tokenizer.eos_token_id).all())
        if number % 2:
            assert not bool(chosen.any())
    masked = sum(int(chosen.sum()) for n, _, chosen in batches if n % 2 == 0)
    real = sum(int((~rotary.is_special[b.ids] | c).sum()) for n, b, c in batches if n % 2 == 0)
    assert 0.2 < masked / real < 0.4
    assert [n for n, _, _ in batches] == list(range(12))
    skipped = masked_batches(rotary, corpus, 200, 0.3, seed=5, start=7)
    assert torch.equal(next(skipped)[1].ids, batches[7][1].ids)


def test_initial_weights(rotary):
    dictionary = tiny.random_dictionary(rotary)
    initialise(dictionary)
    for encoder, decoder in zip(dictionary.W_enc, dictionary.W_dec, strict=True):
        torch.testing.assert_close(encoder.norm(dim=0), torch.ones(12))
        assert float(decoder.abs().max()) == 0


def test_schedule():
    assert [schedule(p, 0.1) for p in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1, 0.525, 0.05])
    assert 0 < schedule(0.0, 0.1) < 0.01

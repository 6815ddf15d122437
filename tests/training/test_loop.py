"""Training from a stream: the loss falls under every rule, jobs do not disturb each other, failures say what to do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import BASE, RESID, STATISTICS_TOKENS, STRINGS, corpus, jobs, stream

import tiny
from isotrace.activations import stream as harvesting
from isotrace.activations.harvest import Corpus, mlp_activations
from isotrace.base.errors import DictionaryError, RunError
from isotrace.dictionaries import sparsity
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.registry import ARCHITECTURES, RULES
from isotrace.training import loop
from isotrace.training.config import StreamConfig, TrainingConfig
from isotrace.training.loop import train, train_dictionary
from isotrace.training.losses import free_running
from isotrace.training.trainer import Job, Norms


@pytest.fixture(autouse=True)
def short_statistics(monkeypatch):
    monkeypatch.setattr(loop, "STATISTICS_TOKENS", STATISTICS_TOKENS)


def job(subject, name, rule, training=BASE, **given):
    k = 2 if RULES[rule].needs_k else None
    return Job("one", configure(subject, name, activation=rule, n_features=24, k=k, **given), training)


CASES = [(name, "topk", {}) for name in ARCHITECTURES if not ARCHITECTURES[name].fitted]
CASES += [("transcoder", rule, {}) for rule in sparsity.__all__ if rule != "topk"]
CASES += [("sae", rule, {"prefixes": (8, 24), "layers": (1,), **RESID}) for rule in sparsity.__all__]
CASES += [("sae", "topk", {"token_normalization": "standardize"})]


@pytest.mark.parametrize(("name", "rule", "given"), CASES, ids=str)
def test_training_explains_more_of_what_is_written(rotary, tmp_path, name, rule, given):
    """Variance of raw, unmasked activations explained by the folded dictionary, and the loss on the way."""
    penalty = 0.0 if RULES[rule].needs_k else 0.01
    one = job(rotary, name, rule, replace(BASE, tokens=4_000, learning_rate=5e-3, penalty=penalty), **given)
    records = []
    [dictionary] = train(stream(rotary, [one]), [one], tmp_path / "c.pt", records.append)
    losses = [r["reconstruction"] for r in records]
    assert len(losses) == 50
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert records[-1]["tokens"] == 4_000
    assert records[-1]["l0"] > 0.1
    if RULES[rule].needs_k:
        assert records[-1]["l0"] <= 2
    else:
        assert all(r["penalty"] > 0 for r in records[1:])
    sites = [*dictionary.config.reads, *dictionary.config.writes]
    x, y = _raw(rotary, dict.fromkeys(sites), dictionary.config)
    fve = 1 - (y - dictionary(x)).square().sum((1, 2)) / (y - y.mean(1, keepdim=True)).square().sum((1, 2))
    untrained = build(one.config, one.training.seed).requires_grad_(False)
    untrained.fold(*_constants(x, y, one.config))
    before = 1 - (y - untrained(x)).square().sum((1, 2)) / (y - y.mean(1, keepdim=True)).square().sum((1, 2))
    assert float(fve.mean()) > 0.1
    assert float((fve - before).min()) > 0.05


def _raw(subject, sites, config):
    found = {site: [] for site in sites}
    for text in tiny.MOLECULES:
        for site, value in subject.run(subject.tokenize([text]), capture=[*sites]).captured.items():
            found[site].append(value[0])
    return (torch.stack([torch.cat(found[site]) for site in group]) for group in (config.reads, config.writes))


def _constants(x, y, config):
    if config.token_normalization != "none":
        nothing = torch.zeros(len(x), x.shape[2]), torch.ones(len(x))
        return *nothing, *nothing
    one, two = Norms.of(x), Norms.of(y)
    return one.mean, one.scale, two.mean, two.scale


def test_several_jobs_give_what_each_gives_alone(rotary, tmp_path):
    """Different lengths, batch sizes, rules and sites; statistics too, where the fresh tokens are the same."""
    several = [replace(one, training=replace(one.training, finetune_tokens=0)) for one in jobs(rotary, "several")]
    source, records = stream(rotary, several), []
    together = train(source, several, tmp_path / "all.pt", records.append)
    assert {r["job"] for r in records} == {one.name for one in several}
    for number, one in enumerate(several):
        alone = []
        [dictionary] = train(source, [one], tmp_path / f"{number}.pt", alone.append)
        for name, value in dictionary.named_parameters():
            assert torch.equal(dict(together[number].named_parameters())[name], value), name
        for name, value in dictionary.rule.named_buffers():
            assert torch.equal(together[number].rule.get_buffer(name), value), name
        assert [r["loss"] for r in alone] == [r["loss"] for r in records if r["job"] == one.name]
        if one.training.tokens == max(other.training.tokens for other in several) and one.training.batch_tokens == 80:
            assert torch.equal(together[number].density, dictionary.density)
            assert torch.equal(together[number].mean_activation, dictionary.mean_activation)


def test_statistics_are_those_of_the_next_blocks(rotary, tmp_path):
    one = job(rotary, "crosslayer", "topk", replace(BASE, tokens=640, batch_tokens=320))
    source = stream(rotary, [one])
    [dictionary] = train(source, [one], tmp_path / "c.pt")
    blocks = source.blocks(0)
    used = [next(blocks) for _ in range(2)]
    assert all(b.activations.shape[1] < 640 for b in used), "each was one batch and a rest"
    fresh = next(blocks).activations
    for layer, site in enumerate(dictionary.config.reads):
        dense = dictionary.encode(layer, fresh[source.hookpoints.index(site)]).dense(24)
        torch.testing.assert_close(dictionary.mean_activation[layer], dense.mean(0))
        torch.testing.assert_close(dictionary.density[layer], (dense > 0).float().mean(0))
    assert float(dictionary.density.sum(1).max()) == pytest.approx(2, abs=0.2)


def test_fine_tuning_brings_the_free_running_subject_closer(relu_subject, tmp_path):
    """Drift from the subject on held-out whole sequences, with and without."""
    texts = Corpus.of(relu_subject, STRINGS)
    training = TrainingConfig(
        tokens=4_000, batch_tokens=200, learning_rate=5e-3, finetune_batch_tokens=200, finetune_learning_rate=2e-3,
        dtype="float32",
    )  # fmt: skip
    drift = {}
    for tokens in (0, 4_000):
        one = job(relu_subject, "crosslayer", "topk", replace(training, finetune_tokens=tokens))
        records, path = [], tmp_path / f"{tokens}.pt"
        [dictionary] = train(
            stream(relu_subject, [one]), [one], path, records.append, subject=relu_subject, corpus=texts
        )
        assert [r["tokens"] >= tokens for r in records if r["phase"] == "finetune"][-1:] == [True] * (tokens > 0)
        batch = relu_subject.tokenize(["CCOCCC"])
        final = mlp_activations(relu_subject, batch)[2]
        chosen = torch.zeros_like(batch.mask)
        drift[tokens] = float(free_running(relu_subject, dictionary, batch, chosen, final))
    assert drift[4_000] < 0.8 * drift[0]


def test_the_short_form_is_the_long_one(rotary, tmp_path):
    settings = StreamConfig(block_tokens=320, harvest_tokens=160)
    one = replace(jobs(rotary, "crosslayer")[0], name="dictionary")
    texts = corpus(rotary)
    short = train_dictionary(rotary, texts, one.config, one.training, tmp_path / "a.pt", stream=settings)
    [long] = train(stream(rotary, [one]), [one], tmp_path / "b.pt", subject=rotary, corpus=texts)
    for name, value in long.state_dict().items():
        assert torch.equal(short.state_dict()[name], value), name


@pytest.mark.parametrize("measure", [True, False])
def test_a_short_training_harvests_what_it_trains_on(rotary, tmp_path, monkeypatch, measure):
    """And as many tokens again to measure the features on, if they are to be measured; with blocks of usual size."""
    monkeypatch.setattr(loop, "STATISTICS_TOKENS", 200_000)
    seen, plain = [], harvesting.record
    count = lambda subject, batch, *rest: (seen.append(batch.ids.numel()), plain(subject, batch, *rest))  # noqa: E731
    monkeypatch.setattr(harvesting, "record", count)
    one = job(rotary, "sae", "topk", replace(BASE, tokens=400, batch_tokens=200))
    settings = StreamConfig(harvest_tokens=40)
    given = {"stream": settings, "measure": measure}
    dictionary = train_dictionary(rotary, corpus(rotary), one.config, one.training, tmp_path / "a.pt", **given)
    wanted = 800 if measure else 400
    assert wanted <= sum(seen) < wanted + 2 * 40
    assert bool(dictionary.density.any()) == bool(dictionary.mean_activation.any()) == measure


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sae", {}, "a circuit needs a transcoder or crosslayer"),
        ("transcoder", {"layers": (0, 1)}, "of layers 0, 1: "),
        ("skip_transcoder", {}, "has a skip path"),
    ],
)
def test_fine_tuning_needs_every_mlp(rotary, tmp_path, name, given, message):
    one = job(rotary, name, "topk", replace(BASE, finetune_tokens=100), **given)
    with pytest.raises(DictionaryError, match=message):
        train(stream(rotary, [one]), [one], tmp_path / "c.pt", subject=rotary, corpus=corpus(rotary))
    assert not [*tmp_path.iterdir()]


def test_fine_tuning_needs_the_subject(rotary, tmp_path):
    one = job(rotary, "transcoder", "topk", replace(BASE, finetune_tokens=100))
    with pytest.raises(RunError, match="needs the subject and sequences"):
        train(stream(rotary, [one]), [one], tmp_path / "c.pt")


def test_a_block_smaller_than_a_batch_is_refused(rotary, tmp_path):
    one = job(rotary, "sae", "topk", replace(BASE, batch_tokens=1_000_000))
    with pytest.raises(RunError, match="smaller than batch_tokens: raise block_tokens"):
        train(stream(rotary, [one]), [one], tmp_path / "c.pt")


def test_an_empty_corpus_is_refused(rotary, tmp_path):
    one = job(rotary, "sae", "topk")
    with pytest.raises(RunError, match="no token to harvest"):
        train_dictionary(rotary, Corpus.of(rotary, []), one.config, one.training, tmp_path / "c.pt")


def test_a_subject_that_breaks_stops_the_training_and_keeps_the_checkpoint(rotary, folders, tmp_path):
    """The subject's activations turn to NaN after the first checkpoint; with a sound subject the run goes on."""
    one = replace(jobs(rotary, "crosslayer")[0], training=replace(BASE, tokens=1_600))
    broken = tiny.load_tiny(folders["esm-rotary"])
    losses, path = [], tmp_path / "c.pt"

    def poison(record):
        losses.append(record["loss"])
        if path.exists():
            broken.module(broken.family.mlp_out, 1).bias.data.fill_(float("nan"))

    with pytest.raises(RunError, match="not finite"):
        train(stream(broken, [one]), [one], path, poison, checkpoint_tokens=320)
    assert bool(torch.isfinite(torch.tensor(losses)).all())
    saved = torch.load(path, weights_only=True)["state"]["trainers"][0]
    assert 0 < saved["tokens"] <= len(losses) * one.training.batch_tokens
    assert all(bool(torch.isfinite(v).all()) for v in saved["weights"].values())
    [resumed] = train(stream(rotary, [one]), [one], path)
    [whole] = train(stream(rotary, [one]), [one], tmp_path / "whole.pt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

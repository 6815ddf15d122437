"""What is harvested is what the subject computes, and what a corpus leaves out is said."""

from itertools import islice

import numpy as np
import pytest
import torch

import tiny
from isotrace.activations.harvest import Corpus, Plan, activations, masked_batches
from isotrace.base.errors import SubjectError
from isotrace.subjects import fast
from isotrace.subjects.dispatch import forwards_replaced

KINDS = ("resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post")
HOOKPOINTS = [f"layers.{layer}.{kind}" for layer in (2, 0) for kind in KINDS]
STRINGS = [a + b for a in tiny.MOLECULES for b in tiny.MOLECULES]


@pytest.mark.parametrize("sequences", [["CCO", "CCN"], ["CCO", "c1cc[nH]c1C", "C"]])
def test_activations_are_those_of_the_padded_pass(subject, sequences):
    batch = subject.tokenize(sequences)
    expected = subject.run(batch, capture=HOOKPOINTS).captured
    found = activations(subject, batch, HOOKPOINTS)
    assert found.shape == (len(HOOKPOINTS), int(batch.mask.sum()), subject.d_model)
    for i, name in enumerate(HOOKPOINTS):
        assert tiny.relative(found[i], expected[name][batch.mask]) < 1e-5, name


def test_neurons_are_harvested_apart(subject):
    batch = subject.tokenize(["CCO", "c1cc[nH]c1C"])
    name = "layers.1.neuron"
    found = activations(subject, batch, [name])
    assert tiny.relative(found[0], subject.run(batch, capture=[name]).captured[name][batch.mask]) < 1e-5
    with pytest.raises(SubjectError, match="16 and 24 wide"):
        activations(subject, batch, [name, "layers.1.mlp_in"])


def test_activations_in_float64_are_exact(subject64):
    batch = subject64.tokenize(["CCO", "c1cc[nH]c1C"])
    expected = subject64.run(batch, capture=HOOKPOINTS).captured
    found = activations(subject64, batch, HOOKPOINTS)
    assert found.dtype == torch.float64
    for i, name in enumerate(HOOKPOINTS):
        assert tiny.relative(found[i], expected[name][batch.mask]) < 1e-12, name


def test_kernels_of_every_cpu_agree(subject, monkeypatch):
    """With and without the linear maps that only some CPUs use."""
    batch, results = subject.tokenize(["CCO", "c1cc[nH]c1C"]), []
    for choice in (False, hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        monkeypatch.setattr(fast, "_onednn_is_faster", lambda weight, choice=choice: choice)
        results.append(activations(subject, batch, HOOKPOINTS))
    assert tiny.relative(*results) < 1e-5


def test_autocast_around_it_changes_nothing(rotary):
    batch = rotary.tokenize(["CCO"])
    with torch.autocast("cpu", torch.bfloat16):
        inside = activations(rotary, batch, HOOKPOINTS)
    assert torch.equal(inside, activations(rotary, batch, HOOKPOINTS))


def test_the_pass_stops_behind_the_last_hookpoint(rotary):
    def fail(*args, **kwargs):
        raise AssertionError("not needed")

    batch = rotary.tokenize(["CCO"])
    behind = [rotary.module(rotary.family.mlp_in, 1), rotary.module(rotary.family.head)]
    with forwards_replaced(dict.fromkeys(behind, fail)):
        activations(rotary, batch, ["layers.1.mlp_in", "layers.0.mlp_out"])
        with pytest.raises(AssertionError):
            activations(rotary, batch, ["layers.1.mlp_out"])
    activations(rotary, batch, ["layers.1.mlp_out"])  # nothing is left behind


def test_a_hookpoint_that_is_never_reached_is_an_error(rotary):
    """As where a family names a module that the pass leaves out."""
    batch, hookpoints = rotary.tokenize(["CCO"]), ["layers.0.mlp_in", "layers.2.mlp_in"]
    passed_over = forwards_replaced({rotary.module("esm.encoder.layer.2"): lambda x, *_, **__: x})
    with passed_over, pytest.raises(SubjectError, match=r"never computed layers\.2\.mlp_in"):
        activations(rotary, batch, hookpoints)
    assert activations(rotary, batch, hookpoints).isfinite().all()


@pytest.mark.parametrize("hookpoints", [[], ["layers.0.mlp_in", "layers.0.mlp_in"], ["layers.9.mlp_in"]])
def test_hookpoints_that_cannot_be_harvested(rotary, hookpoints):
    with pytest.raises(SubjectError):
        activations(rotary, rotary.tokenize(["CCO"]), hookpoints)


def test_a_corpus_keeps_ids_and_says_what_it_left_out(subject):
    given = ["CCO", "", "CXC", "C" * 30, "c1cc[nH]c1"]
    corpus = Corpus.of(subject, iter(given))
    assert [list(ids) for ids in corpus.ids] == subject.tokenizer(["CCO", "c1cc[nH]c1"])["input_ids"]
    assert corpus.tokens.dtype == np.uint16
    assert list(corpus.lengths) == [len(ids) for ids in corpus.ids]
    assert [(index, text) for index, text, _ in corpus.rejects] == [(1, ""), (2, "CXC"), (3, "C" * 30)]
    for (_, _, reason), word in zip(corpus.rejects, ["empty", "'X'", "32 tokens"], strict=True):
        assert word in reason


def test_an_empty_corpus(rotary):
    corpus = Corpus.of(rotary, ["CXC"])
    assert len(corpus.ids) == 0
    assert len(corpus.rejects) == 1


def test_rows_are_a_sequence(rotary):
    ids = Corpus.of(rotary, ["CCO", "CN", "C"]).ids
    assert len(ids) == 3
    assert list(ids[-1]) == list(ids[2])
    assert [list(row) for row in ids[:2]] == [list(ids[0]), list(ids[1])]
    with pytest.raises(IndexError):
        ids[3]


def test_the_hash_of_a_corpus_sees_ids_and_borders(rotary):
    one, same, order = (Corpus.of(rotary, s).sha256() for s in (["CC", "O"], ["CC", "O"], ["O", "CC"]))
    assert one == same != order
    corpus = Corpus.of(rotary, ["CC", "O"])
    moved = Corpus(corpus.tokens, np.array([0, 3, len(corpus.tokens)]), ())
    assert moved.sha256() != one


def test_special_tokens_are_never_masked(rotary):
    """And of the others, the share asked for, in every second batch."""
    stream, chosen, tokens = masked_batches(rotary, Corpus.of(rotary, STRINGS), 40, 0.5, 3), 0, 0
    for number, batch, hidden in islice(stream, 40):
        special = rotary.is_special[batch.ids] & ~hidden
        assert not hidden[:, [0, -1]].any()  # begin and end
        assert bool((batch.ids[hidden] == rotary.mask_id).all())
        assert special[:, [0, -1]].all()
        assert number % 2 == 0 or not hidden.any()
        if number % 2 == 0:
            chosen, tokens = chosen + int(hidden.sum()), tokens + int((~special).sum())
    assert chosen / tokens == pytest.approx(0.5, abs=0.05)


def test_a_plan_counts_its_batches():
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    for tokens in (1, 64, 1_000):
        plan = Plan(lengths, tokens, seed=1)
        batches = plan.epoch(3)
        assert plan.per_epoch() == len(batches)
        assert sorted(np.concatenate(batches)) == list(range(500))
        assert all(len(set(lengths[rows])) == 1 for rows in batches)


def test_ranks_share_the_batches_of_an_epoch(rotary):
    corpus = Corpus.of(rotary, STRINGS)
    per_epoch = Plan(corpus.lengths, 40, 5).per_epoch()

    def first(count, **share):
        stream = masked_batches(rotary, corpus, 40, 0.0, 5, **share)
        return [next(stream)[1].ids.tolist() for _ in range(count)]

    whole = first(2 * per_epoch)
    parts = [first(per_epoch, rank=rank, world_size=2) for rank in range(2)]
    assert parts[0] == whole[0::2]
    assert parts[1] == whole[1::2]

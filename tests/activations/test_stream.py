"""A stream gives every token once per epoch, the same after a resume, in memory that does not grow."""

import os

import psutil
import pytest
import torch

import tiny
from isotrace.activations.harvest import Corpus, Plan, activations, masked_batches
from isotrace.activations.stream import SubjectStream
from isotrace.base.errors import RunError, SubjectError

HOOKPOINTS = ("layers.0.mlp_in", "layers.1.resid_post")
STRINGS = [a + b for a in tiny.MOLECULES for b in tiny.MOLECULES]
SETTINGS = {"block_tokens": 150, "batch_tokens": 40, "mask_rate": 0.2, "seed": 3, "special_tokens": True}


@pytest.fixture
def corpus(rotary):
    return Corpus.of(rotary, STRINGS)


def make(subject, corpus, **changes):
    return SubjectStream(subject, corpus, HOOKPOINTS, **SETTINGS | changes)


def first(stream, count, start=0):
    blocks = stream.blocks(start)
    return [next(blocks) for _ in range(count)]


def in_order(rows):
    """Rows `[tokens, d]` in an order that depends on their values alone."""
    return rows[torch.tensor(sorted(range(len(rows)), key=lambda i: rows[i].tolist()))]


@pytest.mark.parametrize("special", [True, False])
def test_a_block_holds_the_tokens_of_its_batches(rotary, corpus, special):
    block = first(make(rotary, corpus, special_tokens=special), 1)[0]
    batches = masked_batches(rotary, corpus, 40, 0.2, 3)
    parts = []
    for _ in range(block.position):
        ids = next(batches)[1]
        found = activations(rotary, ids, HOOKPOINTS)
        keep = torch.tensor([special or i == rotary.mask_id or not rotary.is_special[i] for i in ids.ids.flatten()])
        parts.append(found[:, keep])
    expected = torch.cat(parts, 1)
    assert 150 <= block.activations.shape[1] < 190
    assert block.activations.shape == expected.shape
    assert not torch.equal(block.activations, expected), "shuffled"
    assert torch.equal(
        in_order(block.activations.transpose(0, 1).flatten(1)), in_order(expected.transpose(0, 1).flatten(1))
    )


def test_a_resumed_stream_goes_on_with_the_same_blocks(rotary, corpus):
    """Across the end of an epoch, from every position."""
    stream = make(rotary, corpus)
    whole = first(stream, 12)
    assert whole[-1].position > Plan(corpus.lengths, 40, 3).per_epoch()
    for i in range(11):
        again = first(make(rotary, corpus), 1, whole[i].position)[0]
        assert again.position == whole[i + 1].position
        assert torch.equal(again.activations, whole[i + 1].activations)


def test_every_setting_is_described_and_changes_the_blocks(rotary, corpus):
    base = make(rotary, corpus)
    reference = first(base, 1)[0].activations
    changes = {"block_tokens": 200, "batch_tokens": 60, "mask_rate": 0.5, "seed": 4, "special_tokens": False}
    for name, value in changes.items():
        other = make(rotary, corpus, **{name: value})
        assert other.describe() != base.describe()
        found = first(other, 1)[0].activations
        assert found.shape != reference.shape or not torch.equal(found, reference), name
    assert make(rotary, Corpus.of(rotary, STRINGS[1:])).describe() != base.describe()
    assert make(rotary, corpus).describe() == base.describe()


def test_ranks_harvest_different_blocks(rotary, corpus):
    one, two = (first(make(rotary, corpus, rank=rank, world_size=2), 1)[0].activations for rank in (0, 1))
    assert one.shape != two.shape or not torch.equal(one, two)
    one, two = (make(rotary, corpus, rank=rank, world_size=2).describe() for rank in (0, 1))
    assert one != two


def test_nothing_to_harvest(rotary, corpus):
    with pytest.raises(RunError, match="no token"):
        make(rotary, Corpus.of(rotary, []))
    only_special = Corpus(torch.tensor([0, 2]).numpy(), torch.tensor([0, 2]).numpy(), ())
    make(rotary, only_special)
    with pytest.raises(RunError, match="no token"):
        make(rotary, only_special, special_tokens=False)
    with pytest.raises(RunError, match="world_size"):
        make(rotary, corpus, rank=2, world_size=2)
    with pytest.raises(SubjectError, match="no hookpoint"):
        SubjectStream(rotary, corpus, ["layers.0.x"], **SETTINGS)


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_stream(rotary, corpus):
    """Fifteen megabytes of blocks pass; a stream that kept a seventh of them would be seen."""
    process, blocks = psutil.Process(os.getpid()), make(rotary, corpus, block_tokens=4_000, batch_tokens=400).blocks()
    for _ in range(10):
        next(blocks)
    before, passed = process.memory_info().rss, 0
    while passed < 15e6:
        passed += next(blocks).activations.nbytes
    assert process.memory_info().rss - before < 2e6

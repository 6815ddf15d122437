"""Interchange screening and the knockout cascade, against hooks, enumeration and a toy with a known circuit."""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from isotrace.base.errors import InputError, SubjectError
from isotrace.discovery.knockout import Removed, knockout_cascade
from isotrace.discovery.methods import Problem, method_of
from isotrace.discovery.methods.interchange import (
    equal_length_pairs,
    interchange_screening,
    ranked,
    screen,
)
from isotrace.discovery.methods.patching import all_nodes
from isotrace.interventions import Components, Heads, mean_values
from isotrace.subjects.subject import Batch


def contrast(subject):
    place = subject.reading_position(2)
    return lambda batch, final: subject.head(final[:, place])[:, 5] - subject.head(final[:, place]).mean(-1)


def pair(subject, one="CCO", other="OCN"):
    batch, corrupt = subject.tokenize([one]), subject.tokenize([other])
    return Problem.interchange(subject, Heads(), batch, corrupt, contrast(subject))


@torch.no_grad()
def patched_by_hand(subject, clean, corrupt, nodes):
    """The metric when plain hooks put into `nodes` (layer, head) what they give on the other input."""
    width, given = subject.d_head(0), {}
    modules = {layer: subject.hookpoint(f"layers.{layer}.head_out")[0] for layer in range(subject.n_layers)}
    hooks = [
        m.register_forward_pre_hook(lambda _, args, n=n: given.update({n: args[0].clone()})) for n, m in modules.items()
    ]
    subject.hidden(corrupt.ids, corrupt.mask)
    for hook in hooks:
        hook.remove()

    def put(_, args, layer):
        x = args[0].clone()
        for node_layer, head in nodes:
            if node_layer == layer:
                x[..., head * width : (head + 1) * width] = given[layer][..., head * width : (head + 1) * width]
        return (x,)

    hooks = [m.register_forward_pre_hook(lambda _, args, n=n: put(_, args, n)) for n, m in modules.items()]
    value = contrast(subject)(clean, subject.hidden(clean.ids, clean.mask))
    for hook in hooks:
        hook.remove()
    return float(value)


@pytest.mark.every_family
def test_interchange_against_hooks(subject64):
    given = pair(subject64)
    scores = method_of("interchange")(given)
    clean = float(given.value())
    for layer in range(subject64.n_layers):
        for head in range(subject64.n_heads(layer)):
            expected = clean - patched_by_hand(subject64, given.batch, given.corrupt, [(layer, head)])
            assert float(scores.values[layer][0, 0, head]) == pytest.approx(expected, abs=1e-10)
    assert any((v.abs() > 1e-6).any() for v in scores.values)


def test_removed_nodes_against_hooks(subject64):
    """Any method works on what is left; copies of the batch each get the other input's activations."""
    given = pair(subject64)
    gone, watched = torch.tensor([[0, -1, 1], [2, -1, 0]]), torch.tensor([[1, -1, 0], [1, -1, 1], [0, -1, 1]])
    cascade = knockout_cascade([given, pair(subject64, "NCC", "CCC")], gone, watched)
    hands = [[], [(0, 1)], [(0, 1), (2, 0)]]
    for step, removed in enumerate(hands):
        base = patched_by_hand(subject64, given.batch, given.corrupt, removed)
        assert cascade.metric[step, 0] == pytest.approx(base, abs=1e-10)
        for j, head in enumerate((0, 1)):
            value = patched_by_hand(subject64, given.batch, given.corrupt, [*removed, (1, head)])
            assert cascade.effects[step, 0, j] == pytest.approx(base - value, abs=1e-10)
    assert np.isnan(cascade.effects[:, 0, 2]).tolist() == [False, True, True]
    assert {c.node for c in cascade.changes(seed=0)} == {(1, -1, 0), (1, -1, 1)}


def test_removed_at_a_position(rotary64):
    """A reference of several inputs, and one that broadcasts, at one position only."""
    batch = rotary64.tokenize(["CCO", "OCN"])
    means = mean_values(rotary64, Heads(), [batch])
    for reference in (means, tuple(m.expand(2, 5, *m.shape) for m in means)):
        removed = Removed(Heads(), torch.tensor([[1, 2, 0]]), reference)
        clean, values = Heads().record(rotary64, batch)[0], removed.record(rotary64, batch)[0]
        expected = clean[1].clone()
        expected[:, 2, 0] = means[1][0]
        assert torch.equal(values[1], expected)
        assert torch.equal(values[0], clean[0])


@dataclass(frozen=True)
class Toy(Components):
    """Layer 0: A and B, both the input. Layer 1: C, a copy of A. M = max(A, B) + C."""

    name = "toy"

    def sizes(self, subject):
        return (2, 1), (1, 1)

    @contextmanager
    def edited(self, subject, edit):
        subject.edit = edit
        yield
        del subject.edit


class ToySubject:
    source = "toy"

    def require_float32(self, what):
        """It computes in float64."""

    def hidden(self, ids, mask):
        first = self.edit(0, ids.double()[..., None, None].repeat(1, 1, 2, 1))
        second = self.edit(1, first[..., :1, :])
        return torch.cat([first[..., 0], second[..., 0]], -1)


def toy_problems():
    subject, metric = ToySubject(), lambda batch, final: (final[..., :2].amax(-1) + final[..., 2]).sum(-1)
    zeros = (torch.zeros(2, 1), torch.zeros(1, 1))
    ids = torch.randint(1, 9, (12, 1, 4), generator=torch.Generator().manual_seed(0))
    batches = [Batch(row, torch.ones(1, 4, dtype=torch.bool), ("x",), ((),)) for row in ids]
    toy = Problem(subject, Toy(), batches[0], metric, zeros)
    return [Problem(toy.subject, toy.components, batch, metric, zeros) for batch in batches]


def test_cascade_finds_the_backup_and_the_dependant():
    problems = toy_problems()
    total = np.array([float(p.batch.ids.sum()) for p in problems])
    a, b, c = [0, -1, 0], [0, -1, 1], [1, -1, 0]
    cascade = knockout_cascade(problems, torch.tensor([a, b]), torch.tensor([a, b, c]))
    assert np.array_equal(cascade.metric, np.stack([2 * total, total, 0 * total]))
    assert np.array_equal(cascade.effects[0], np.stack([total, 0 * total, total], 1))
    found = {(change.step, change.node): change for change in cascade.changes(seed=0)}
    assert {key: change.verdict for key, change in found.items()} == {
        (1, tuple(b)): "rises",
        (1, tuple(c)): "vanishes",
        (2, tuple(c)): "vanishes",
    }
    backup = found[1, tuple(b)]
    assert (backup.alone, backup.effect, backup.change) == (0.0, total.mean(), total.mean())
    assert backup.change_ci[0] < total.mean() < backup.change_ci[1]


def test_screening_of_the_toy():
    rows = screen(toy_problems(), "activation_patching", by_position=False).rows(seed=0)
    assert [(r.layer, r.component) for r in rows] == [(0, 0), (1, 0), (0, 1)]
    a, c, b = rows
    assert max(a.p, c.p) < 0.005
    assert b.p == 1.0
    assert b.mean_ci == (0.0, 0.0)
    assert a.mean_ci[0] < a.mean < a.mean_ci[1]
    assert a.first == 1.0
    assert (b.rank, b.rank_ci) == (3, (3.0, 3.0))


def test_ranks():
    assert ranked(np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 9.0]])).tolist() == [[3, 1, 2], [2, 3, 1]]


def test_pairs():
    lengths = [5, 7, 5, 5, 9, 7, 5, 5]
    pairs = equal_length_pairs(lengths, 3, seed=0)
    assert all(lengths[i] == lengths[j] for i, j in pairs)
    assert len({i for both in pairs for i in both}) == 6
    assert pairs == equal_length_pairs(lengths, 3, seed=0)
    assert len({tuple(equal_length_pairs(lengths, 1, seed=seed)) for seed in range(20)}) > 5
    with pytest.raises(InputError, match="only 3 of 4 pairs"):
        equal_length_pairs(lengths, 4, seed=0)


def test_refusals(rotary):
    given = pair(rotary)
    with pytest.raises(SubjectError, match="no second input"):
        method_of("interchange")(Problem(rotary, Heads(), given.batch, given.metric, given.reference))
    with pytest.raises(InputError, match="at least 120"):
        interchange_screening([given])
    assert interchange_screening([given], minimum=1).effects.shape == (1, len(all_nodes(given, False)))
    with pytest.raises(InputError, match="nothing to screen"):
        screen([], "interchange")
    twice = torch.tensor([[0, -1, 0], [0, -1, 0]])
    with pytest.raises(InputError, match="twice"):
        knockout_cascade([given], twice, twice[:1])
    with pytest.raises(InputError, match="at least one problem"):
        knockout_cascade([], twice, twice)

"""Clamping: the closed form takes the steps it is known to take, and a clamped head does not learn where it looks."""

import numpy as np
import pytest
import torch

from isotrace.studies.learning.clamping import CLAMPS, LEARNED, clamped_patterns, drawn, fall, fresh, trained
from isotrace.studies.learning.factors import loss_of, steps_until_learned
from isotrace.subjects.dispatch import patterns_recorded


def test_clamping_takes_the_plateau_away():
    assert [steps_until_learned(clamped, 1) for clamped in ((), (2,), (1, 2))] == [151, 69, 29]
    assert steps_until_learned((0, 1, 2), 1) == 0
    assert steps_until_learned((), 1, limit=100) is None


def test_the_loss_is_that_of_the_whole_product():
    wanted, found = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0)).double()
    whole = [torch.einsum("i,j,k->ijk", *factors) for factors in (wanted, found)]
    assert float(loss_of(wanted, found)) == pytest.approx(float((whole[0] - whole[1]).square().mean() / 2))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return fresh(tmp_path_factory.mktemp("clamped"), 0)


@pytest.mark.parametrize("clamps", CLAMPS.values())
def test_gradients_flow_around_what_is_clamped(subject, clamps):
    ids, answer = drawn(subject, 8, torch.Generator().manual_seed(0))
    assert (ids.gather(1, answer[:, None] - 1) == ids[:, -1:]).all(), "the answer stands behind the token asked for"
    subject.model.zero_grad()
    with clamped_patterns(subject, clamps, answer), patterns_recorded(subject) as seen:
        final = subject.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
    subject.head(final[:, -1]).logsumexp(-1).sum().backward()
    first, second = (seen[module][:, 0] for module in subject.attentions)
    before = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 2], [4, 3]])
    looks = first[:, before[:, 0], before[:, 1]]
    found = second[range(8), -1, answer]
    assert bool((looks == 1).all()) == ("previous" in clamps)
    assert bool((found == 1).all()) == ("match" in clamps)
    grads = [block.attn.c_attn.weight.grad for block in subject.model.transformer.h]
    width = subject.d_head(0)
    for grad, name in zip(grads, ("previous", "match"), strict=True):
        query, value = grad[:, :width], grad[:, 2 * subject.d_model : 2 * subject.d_model + width]
        assert value.abs().max() > 0
        assert bool((query == 0).all()) == (name in clamps)


def test_training_lowers_the_loss(tmp_path):
    subject = fresh(tmp_path, 0)
    losses = trained(subject, CLAMPS["previous and match"], 30, 0)
    assert losses[-5:].mean() < losses[:5].mean() - 0.1


def test_a_fall_is_where_the_smoothed_loss_crosses():
    losses = np.concatenate([np.full(100, 2.0), np.full(100, 0.6), np.full(100, 0.0)])
    step, drop = fall(losses)
    # of 25 losses at most one may be 2 (from step 99) for a mean below ln 2, and at most 14 may be 0.6 (from 186)
    assert (step, drop) == (186, 87)
    assert losses[186:211].mean() < LEARNED < losses[185:210].mean()
    assert np.isnan(fall(losses[:200])).all()

"""The nulls beside a dictionary are what they say they are."""

from types import SimpleNamespace

import torch

import tiny
from isotrace.annotation.nulls import sources
from isotrace.evaluation.controls import random_directions
from isotrace.subjects.subject import Batch


def test_random_directions_fire_at_chance(rotary, monkeypatch):
    """On inputs that are alike in every direction around a mean far from zero, every direction fires about as often:
    were the mean not taken off, one half of them would always fire and the other never."""
    dictionary, k = tiny.random_dictionary(rotary, "transcoder", n_features=64), 8
    generator = torch.Generator().manual_seed(0)
    x = 20 + torch.randn(rotary.n_layers, 1, 4_000, rotary.d_model, generator=generator)

    def planted(subject, batch, hookpoints, take):
        for i in range(len(hookpoints)):
            take(i, x[i])

    monkeypatch.setattr(sources, "record", planted)
    ids = torch.zeros(1, 4_000, dtype=torch.int64)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), ("x",), ((),))
    data = SimpleNamespace(batches=lambda tokens: [(0, batch)])
    means = sources.input_means(rotary, dictionary, data)  # pyright: ignore[reportArgumentType]
    made = random_directions(rotary, dictionary, means, 64, k, seed=0)
    chance = k / 64
    for layer in range(rotary.n_layers):
        rate = (made.encode(layer, x[layer, 0]).dense(64) > 0).float().mean(0)
        assert abs(float(rate.mean()) - chance) < 1e-6
        assert float(rate.max()) < 3 * chance
        assert float(rate.min()) > chance / 3
    torch.testing.assert_close(torch.stack([*made.W_enc]).norm(dim=1), torch.ones(rotary.n_layers, 64))

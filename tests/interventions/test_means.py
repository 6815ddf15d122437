"""What a mean is taken over."""

import pytest
import torch

import tiny
from isotrace.dictionaries.features import Features
from isotrace.interventions import Embeddings, Heads, Neurons, To
from isotrace.interventions.components import mean_values

TEXTS = ("CCO", "c1cc[nH]c1", "C")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["heads", "neurons", "features", "embeddings"])
def test_means_are_over_real_tokens_however_they_are_batched(subject, kind):
    """Every sequence by itself has no padding: its tokens count once each, those that fill up a batch never."""
    dictionary = tiny.random_dictionary(subject)
    parts = {"heads": Heads(), "neurons": Neurons(), "features": Features(dictionary), "embeddings": Embeddings()}[kind]
    alone = [parts.record(subject, subject.tokenize([text]))[0] for text in TEXTS]
    batches = [subject.tokenize(TEXTS[:2]), subject.tokenize(TEXTS[2:])]
    found = mean_values(subject, parts, batches)
    for layer, values in enumerate(zip(*alone, strict=True)):
        expected = torch.cat([one[0] for one in values]).mean(0)
        assert tiny.relative(found[layer], expected) < 1e-5
    told = To.mean(subject, parts, batches)
    assert told.origin == "mean"
    assert all(torch.equal(a, b) for a, b in zip(told.values, found, strict=True))

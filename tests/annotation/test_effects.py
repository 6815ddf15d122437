"""Effects of features on the output: the same as with the plan that takes each away, run from the first token on."""

import pytest
import torch

import tiny
from isotrace.annotation.cards.effects import _finals
from isotrace.dictionaries.features import Features
from isotrace.interventions import Intervention, Nodes, Plan, Rows, Set
from isotrace.subjects.fast import fast_kernels

TEXTS = ["CCOCC", "CC(=O)N"]
SAE = {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"}
ARCHITECTURES = {
    "crosslayer": ("crosslayer", {}),
    "later layers": ("crosslayer", {"layers": (1, 2)}),
    "standardised": ("sae", SAE | {"token_normalization": "standardize"}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_by_layer_are_those_of_a_plan(subject, name):
    architecture, given = ARCHITECTURES[name]
    dictionary = tiny.random_dictionary(subject, architecture, **given)
    layers = dictionary.config.layers
    first, second = (subject.tokenize([text]).ids[0] for text in TEXTS)
    second = torch.cat([second, second])[: len(first)]
    part = [{"layer": layers[i % len(layers)], "feature": i // 2} for i in range(7)]
    ids = torch.stack([second if i % 3 else first for i in range(len(part))])
    (clean, found), example = _finals(subject, dictionary, part, ids, 2)

    nodes = tuple(Nodes(((layers.index(row["layer"]), -1, row["feature"]),)) for row in part)
    plan = Plan((Intervention(Features(dictionary), Set(0.0), Rows(nodes)),))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with fast_kernels(subject), subject.edited(plan):
        expected = subject.hidden(ids, mask)
    with fast_kernels(subject):
        whole = subject.hidden(ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(clean[example], whole, rtol=1e-5, atol=1e-6)
    assert (found - whole).abs().amax((1, 2)).max() > 1e-3

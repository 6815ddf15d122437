"""Principal components as a dictionary: the best there is of their number, and exact with all of them."""

import pytest
import torch

import tiny
from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.build import build, configure


def planted(n, seed=0):
    """Tokens `[layers, n, d]` of unequal spread, off their mean."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.1, 3, tiny.D_MODEL)
    return torch.randn(tiny.N_LAYERS, n, tiny.D_MODEL, generator=generator) * spread + 1


def fitted(subject, n_features, k, x):
    dictionary = build(configure(subject, "pca", n_features=n_features, k=k), seed=0)
    dictionary.fit(x, 0)
    return dictionary.requires_grad_(False)


def test_few_components_are_the_best_of_their_number(rotary):
    x, n = planted(200), 4
    dictionary = fitted(rotary, 2 * n, 2 * n, x)
    for layer in range(tiny.N_LAYERS):
        active = dictionary.encode(layer, x[layer]).dense(2 * n)
        made = dictionary.decode(layer, {layer: active}, x[layer])
        centred = (x[layer] - x[layer].mean(0)).double()
        left = torch.linalg.svdvals(centred)[n:].square().sum()
        assert float((made - x[layer]).double().square().sum()) == pytest.approx(float(left), rel=1e-4)


def test_all_components_are_exact_and_more_features_stay_silent(rotary):
    x = planted(200)
    dictionary = fitted(rotary, 2 * tiny.D_MODEL + 6, tiny.D_MODEL, x)
    active = dictionary.encode(1, x[1]).dense(2 * tiny.D_MODEL + 6)
    torch.testing.assert_close(dictionary.decode(1, {1: active}, x[1]), x[1], rtol=1e-3, atol=1e-4)
    assert not active[:, -6:].any()


@pytest.mark.parametrize("given", [{"activation": "jumprelu", "k": None}, {"prefixes": (4, 8)}])
def test_what_is_not_fitted_is_refused(rotary, given):
    with pytest.raises(DictionaryError, match="topk or relu"):
        configure(rotary, "pca", **{"n_features": 8, "k": 4} | given)

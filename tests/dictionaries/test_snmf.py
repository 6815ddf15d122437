"""Groups of neurons: planted ones are found, codes are those of non-negative least squares, and a hierarchy."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

import tiny
from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.architectures.snmf import (
    Hierarchy,
    best_starts,
    consensus,
    dealt,
    factorised,
    hierarchy,
    matched,
    nonnegative,
    offset_of,
    recurring,
    truncated,
)
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.interop import write

NEURONS, FACTORS, SIZE, TOKENS = 512, 12, 15, 4_000


def planted(noise=0.0, seed=0, neurons=NEURONS, factors=FACTORS, tokens=TOKENS):
    """(neurons `[tokens, d]`, factors `[d, K]`); noise in standard deviations of the neurons."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.zeros(neurons, factors)
    for column in range(factors):
        made[torch.randperm(neurons, generator=generator)[:SIZE], column] = torch.randn(SIZE, generator=generator)
    on = torch.rand(tokens, factors, generator=generator) < 0.3
    x = (torch.rand(tokens, factors, generator=generator) * on) @ made.T
    return x + noise * x.std() * torch.randn(x.shape, generator=generator), made


def found(x, truth, p, iterations=120):
    """Per seed, the cosines of the planted factors with the best of two starts."""
    runs = best_starts(x, FACTORS, p, iterations, starts=dealt(10, 5, 0))
    return runs, torch.stack([matched(truth, one.factors)[1] for one in runs])


def test_planted_groups_are_found_from_five_seeds_of_five():
    x, truth = planted()
    runs, cosine = found(x, truth, 0.03)
    assert float(cosine.min()) > 0.99
    assert max(one.error for one in runs) < 0.01
    factors, share = consensus([one.factors for one in runs], 0.03)
    assert share.tolist() == [1.0] * FACTORS
    assert float(matched(truth, factors)[1].min()) > 0.99
    assert int((factors != 0).sum(0).max()) <= -(-3 * NEURONS // 100)


@pytest.mark.nightly
def test_planted_groups_are_found_in_noise():
    assert float(found(*planted(noise=0.5), 0.03)[1].min()) > 0.99


@pytest.mark.nightly
def test_a_small_error_without_truncation_is_no_evidence_and_too_few_neurons_lose_some():
    x, truth = planted()
    runs, cosine = found(x, truth, 1.0)
    assert max(one.error for one in runs) < 0.002
    assert float(cosine.mean()) < 0.65
    assert float((cosine > 0.9).float().mean()) < 0.1
    few = found(x, truth, 0.01)[1]
    assert 0.7 < float(few.mean()) < 0.9
    assert float(few.max()) < 0.97, "five neurons of fifteen are not the group"
    assert bool((few < 0.5).any()), "some are lost"


def test_the_best_iterate_is_kept():
    x = planted(noise=0.5, tokens=300)[0]
    errors = [factorised(x, FACTORS, 0.01, n, seed=3).error for n in range(1, 30)]
    assert errors == sorted(errors, reverse=True)
    one = factorised(x, FACTORS, 0.01, 30, seed=3)
    left = float((x - one.weights @ one.factors.T).square().sum() / x.square().sum())
    assert one.error == pytest.approx(left, rel=1e-3)
    assert float(one.weights.min()) >= 0
    torch.testing.assert_close(one.weights.norm(dim=0), torch.ones(FACTORS))


def test_codes_are_those_of_non_negative_least_squares():
    x, truth = planted(noise=0.2, tokens=100)
    unit = torch.nn.functional.normalize(truth, dim=0)
    exact = torch.tensor(np.stack([nnls(unit.double().numpy(), row.double().numpy())[0] for row in x]))
    product, inner = x.double() @ unit.double(), (unit.T @ unit).double()
    away = [float((nonnegative(product, inner, n) - exact).abs().max()) for n in (5, 20, 200)]
    assert away[2] < away[1] < away[0]
    assert away[1] < 0.03 * float(exact.max())
    agree = (nonnegative(product, inner, 20) > 0) == (exact > 0)
    assert float(agree.double().mean()) > 0.99


def test_codes_have_the_slope_of_the_exact_ones():
    """Of the active factors (Fᵀ F)⁻¹ Fᵀ, of the others none."""
    x, truth = planted(noise=0.3, tokens=20)
    unit = torch.nn.functional.normalize(truth, dim=0).double()
    x = x.double().requires_grad_(True)
    a = nonnegative(x @ unit, unit.T @ unit, 200)
    (slope,) = torch.autograd.grad(a.sum(), x)
    exact = torch.stack([torch.linalg.pinv(unit[:, row > 0]).sum(0) for row in a.detach()])
    assert float((slope - exact).norm() / exact.norm()) < 0.1


def test_a_factor_in_few_runs_is_left_out_and_a_sign_is_another_factor():
    truth = planted(tokens=1)[1]
    other = truth.clone()
    other[:, 3] = -other[:, 3]
    order = torch.randperm(FACTORS, generator=torch.Generator().manual_seed(0))
    assert recurring(truth, other[:, order]) == pytest.approx(11 / 12)
    factors, share = consensus([truth, truth[:, order], other, truth, other[:, order]], 0.03)
    assert share.tolist() == [1.0] * 3 + [pytest.approx(0.6)] + [1.0] * 8
    assert float(factors[:, 3].abs().max()) == 0
    torch.testing.assert_close(factors.norm(dim=0), torch.tensor([float(column != 3) for column in range(FACTORS)]))


def test_truncation_keeps_the_largest_share():
    kept = truncated(torch.tensor([[1.0, -5.0], [-3.0, 2.0], [2.0, 0.5], [0.1, -0.2]]), 0.5)
    assert kept.tolist() == [[0, -5], [-3, 2], [2, 0], [0, 0]]
    assert int((truncated(torch.rand(10, 1), 0.11) != 0).sum()) == 2


def test_what_is_subtracted():
    x = torch.nn.functional.gelu(torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) - 1)
    assert offset_of("floor", x).tolist() == pytest.approx([-0.17] * 6, abs=1e-3)
    assert torch.equal(offset_of("median", x), x.median(0).values)
    assert offset_of("nothing", x).tolist() == [0] * 6


def test_it_fits_the_neurons_it_is_given(rotary):
    """Planted in a layer of the config; the median comes back as what is written where no group is active."""
    config = configure(rotary, "snmf", layers=(1,), n_features=3, options={"p": 0.2, "restarts": 4, "seeds": 2})
    assert (config.d_in, config.reads) == (24, ["layers.1.neuron"])
    generator = torch.Generator().manual_seed(0)
    truth = torch.block_diag(*torch.randn(3, 8, 1, generator=generator))
    truth[[k for k in range(24) if k % 8 > 4]] = 0
    a = torch.rand(800, 3, generator=generator) * (torch.rand(800, 3, generator=generator) < 0.2)
    c = torch.randn(24, generator=generator)
    config = configure(rotary, "snmf", layers=(1,), n_features=3, options={**config.options, "offset": "median"})
    one = build(config, 0).requires_grad_(False)
    one.fit((a @ truth.T + c)[None], 0)  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(one.b_dec[0], c, atol=1e-5, rtol=0)
    x = a @ truth.T + c
    assert float((one(x[None])[0] - x).square().mean() / (x - c).square().mean()) < 1e-3
    assert one.recurrence.tolist() == [[1.0] * 3]
    again = build(config, 0)
    again.fit((a @ truth.T + c)[None], 0)
    assert torch.equal(one.W_dec[0], again.W_dec[0])


@pytest.mark.parametrize(
    "given",
    [{"options": {"q": 1}}, {"options": {"p": 0.0}}, {"options": {"offset": "mean"}}, {"window": 2},
     {"activation": "topk", "k": 2}, {"options": {"restarts": 1}}, {"hookpoint_out": "layers.{}.mlp_out"}],
)  # fmt: skip
def test_what_it_cannot_be_is_refused(rotary, given):
    with pytest.raises(DictionaryError):
        configure(rotary, "snmf", n_features=4, **given)


def test_a_hierarchy_finds_what_groups_share_and_stays_non_negative():
    """Six groups of eight neurons, of which three share five with one another, and the other three too."""
    generator = torch.Generator().manual_seed(0)
    child = torch.zeros(60, 6)
    for column in range(6):
        first = 5 * (column // 3)
        child[first : first + 5, column] = torch.tensor([1.0, -0.8, 0.9, 1.1, -1.2])
        child[10 + 8 * column : 13 + 8 * column, column] = torch.tensor([1.0, 1.2, -1.0])
    x = (torch.rand(800, 6, generator=generator) * (torch.rand(800, 6, generator=generator) < 0.3)) @ child.T
    given = {"sizes": (6, 2), "p": 8 / 60, "seed": 1}
    before, made = hierarchy(x, **given, steps=0), hierarchy(x, **given, steps=200, rate=1e-2)

    def error(one):
        return float((one.scores(2) @ one.level(2).T - x).square().sum() / x.square().sum())

    assert error(made) < error(before)
    assert min(float(one.min()) for one in (*before.maps, *made.maps)) >= 0
    assert made.scores(2).shape == (800, 2)
    torch.testing.assert_close(made.scores(1) @ made.level(1).T, made.scores(2) @ made.level(2).T)
    places, cosine = matched(child, before.level(1))
    assert float(cosine.min()) > 0.8
    parents = before.maps[1].argmax(1)[places].tolist()
    assert parents[:3] == parents[:1] * 3
    assert parents[3:] == [1 - parents[0]] * 3


def test_edges_of_a_hierarchy_are_its_largest_coefficients():
    maps = torch.ones(3, 6), torch.tensor([[1.0, 0.2, 0.14, 0.5, 0.6, 0.7], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).T
    assert Hierarchy(torch.zeros(4, 2), maps).edges(1) == [(0, 0), (0, 5), (0, 4), (0, 3)]


def test_a_dictionary_in_memory_has_the_shape_of_any_other(rotary):
    one = tiny.random_dictionary(rotary, "snmf", k=None)
    x = torch.randn(tiny.N_LAYERS, 5, 24, generator=torch.Generator().manual_seed(0))
    assert one(x).shape == x.shape
    dense = one.encode(0, x[0]).dense(12)
    assert bool((dense >= 0).all())
    assert torch.isfinite(one(x)).all()


def test_other_tools_have_no_such_encoder(rotary, tmp_path):
    with pytest.raises(DictionaryError, match="encodes as no other tool does"):
        write(tiny.random_dictionary(rotary, "snmf", k=None), tmp_path, "saelens", "tiny")

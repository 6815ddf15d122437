"""Sparsity rules against the papers that define them."""

import itertools

import pytest
import torch

import tiny
from isotrace.dictionaries.sparsity import batchtopk
from isotrace.dictionaries.sparsity.jumprelu import Jump
from isotrace.dictionaries.sparsity.rule import RuleSettings, SparseActivations
from isotrace.training.config import TrainingConfig
from isotrace.training.losses import reconstruction

TOKENS, K = 40, 3
SETTINGS = RuleSettings(torch.float64, keep_h=False, bandwidth=0.5, tanh_scale=2.0)
TRAINING = TrainingConfig(dtype="float64", auxiliary=0.0, tanh_scale=2.0)


def tokens(d, n=TOKENS, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def make(subject, rule, **given):
    return tiny.random_dictionary(subject, "sae", activation=rule, k=K if "topk" in rule else None, **given)


def train_encode(dictionary, x, layer=0):
    """Dense activations in training."""
    active = dictionary.rule.encode_training(dictionary, layer, x, SETTINGS).active
    return active.dense(dictionary.config.n_features) if isinstance(active, SparseActivations) else active


def test_topk_keeps_the_k_largest_positive(rotary64):
    dictionary, x = make(rotary64, "topk"), tokens(rotary64.d_model)
    dictionary.b_enc[0].data -= 0.8  # so that some tokens have fewer than k positive
    h, dense = dictionary.preactivations(0, x), dictionary.encode(0, x).dense(12)
    assert bool(((h > 0).sum(1) < K).any())
    assert bool(((h > 0).sum(1) > K).any())
    for row, values in zip(h, dense, strict=True):
        kept = values > 0
        assert (
            values[kept].sort(descending=True).values.tolist() == row[row > 0].sort(descending=True).values[:K].tolist()
        )
        assert torch.equal(values[kept], row[kept])
    torch.testing.assert_close(train_encode(dictionary, x), dense, rtol=1e-12, atol=1e-12)


def test_batchtopk_keeps_k_per_token_on_average(rotary64):
    dictionary, x = make(rotary64, "batchtopk", n_features=32), tokens(rotary64.d_model)
    x[:4] *= 10  # a few loud tokens want more than 4 k features, others get fewer than k
    h, dense = dictionary.preactivations(0, x), train_encode(dictionary, x)
    assert int((dense > 0).sum()) == K * TOKENS
    assert int((dense > 0).sum(1).max()) > 4 * K
    assert int((dense > 0).sum(1).min()) < K
    cut = h[h > 0].sort(descending=True).values[K * TOKENS - 1]
    torch.testing.assert_close(dense, h * (h >= cut), rtol=1e-12, atol=1e-12)


def test_batchtopk_keeps_all_where_too_few_are_positive(rotary64):
    dictionary, x = make(rotary64, "batchtopk"), tokens(rotary64.d_model)
    dictionary.b_enc[0].data -= 2
    h = dictionary.preactivations(0, x)
    assert 0 < int((h > 0).sum()) < K * TOKENS
    torch.testing.assert_close(train_encode(dictionary, x), h.relu(), rtol=1e-12, atol=1e-12)


def test_batchtopk_survives_a_batch_without_a_positive(rotary64):
    dictionary, x = make(rotary64, "batchtopk").requires_grad_(True), tokens(rotary64.d_model)
    dictionary.b_enc[0].data -= 1e3
    before = dictionary.rule.threshold.clone()
    dense = train_encode(dictionary, x)
    assert int((dense != 0).sum()) == 0
    dense.sum().backward()
    assert float(dictionary.W_enc[0].grad.abs().max()) == 0
    assert torch.equal(dictionary.rule.threshold, before)


def test_batchtopk_learns_the_running_mean_of_its_smallest_activation(rotary64):
    dictionary = make(rotary64, "batchtopk")
    dictionary.rule.threshold.fill_(-1)
    expected = None
    for seed in range(5):
        x = tokens(rotary64.d_model, seed=seed)
        dense = train_encode(dictionary, x, layer=1)
        smallest = float(dense[dense > 0].min())
        expected = smallest if expected is None else 0.99 * expected + 0.01 * smallest
    assert batchtopk.MOMENTUM == 0.99
    assert dictionary.rule.threshold.tolist() == pytest.approx([-1, expected, -1], rel=1e-12)
    h = dictionary.preactivations(1, x)
    assert torch.equal(dictionary.encode(1, x).dense(12), h * (h > expected))
    alone = torch.cat([dictionary.encode(1, one[None]).dense(12) for one in x])
    torch.testing.assert_close(alone, dictionary.encode(1, x).dense(12), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bandwidth", [0.05, 0.5, 3.0])
def test_jumprelu_gradients(bandwidth, double):
    """Of h where it jumped, as autograd has it; of θ by eq. 11 of Rajamanoharan et al. 2024b, entry by entry."""
    generator = torch.Generator().manual_seed(0)
    h, weight = torch.randn(2, 60, 5, generator=generator)
    theta = torch.rand(5, generator=generator)
    h.requires_grad_(True)
    theta.requires_grad_(True)
    a = Jump.apply(h, theta, bandwidth)
    (a * weight).sum().backward()
    expected_h, expected_theta = torch.zeros(60, 5), torch.zeros(5)
    values, thetas = h.tolist(), theta.tolist()
    for i, f in itertools.product(range(60), range(5)):
        value, at = values[i][f], thetas[f]
        assert a[i, f].item() == (value if value > at else 0)
        expected_h[i, f] = weight[i, f] if value > at else 0
        expected_theta[f] -= at / bandwidth * weight[i, f] * (abs(value - at) < bandwidth / 2)
    assert float(expected_theta.abs().max()) > 0
    torch.testing.assert_close(h.grad, expected_h)
    torch.testing.assert_close(theta.grad, expected_theta)


def test_the_jumprelu_estimate_is_the_slope_of_the_expected_activation(double):
    """E[a] over dense uniform h has a true derivative in θ, −θ · p(θ); the estimate from samples converges to it."""
    h = torch.linspace(-2, 2, 400_001)[:, None]
    theta = torch.tensor([0.6], requires_grad=True)
    Jump.apply(h, theta, 0.1).mean().backward()
    higher, lower = ((h * (h > at)).mean() for at in (0.61, 0.59))
    assert float(theta.grad) == pytest.approx(float(higher - lower) / 0.02, rel=1e-3)


def test_gated_is_the_papers_parametrisation(rotary64):
    """Rajamanoharan et al. 2024a, §3.2: a = [W_gate x + b_gate > 0] · ReLU(e^{r_mag} W_gate x + b_mag)."""
    dictionary, x = make(rotary64, "gated"), tokens(rotary64.d_model)
    generator = torch.Generator().manual_seed(3)
    w_gate = torch.randn(rotary64.d_model, 12, generator=generator)
    b_gate, b_mag, r_mag = torch.randn(3, 12, generator=generator)
    gate = x @ w_gate + b_gate
    expected = (gate > 0) * (x @ (w_gate * r_mag.exp()) + b_mag).relu()
    dictionary.W_enc[0].data.copy_(w_gate * r_mag.exp())
    dictionary.b_enc[0].data.copy_(b_mag)
    dictionary.rule.gate_scale[0] = r_mag
    dictionary.rule.gate_bias[0] = b_gate - b_mag * (-r_mag).exp()
    torch.testing.assert_close(dictionary.encode(0, x).dense(12), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(train_encode(dictionary, x), expected, rtol=1e-11, atol=1e-11)
    opened = dictionary.rule.encode_training(dictionary, 0, x, SETTINGS).gate
    torch.testing.assert_close(opened, gate.relu(), rtol=1e-11, atol=1e-11)
    assert 0 < int((expected > 0).sum()) < int((gate > 0).sum()), "some open gates have no magnitude"


def test_the_gate_learns_from_its_own_reconstruction_alone(rotary64):
    """Open gates over magnitudes that are all 0: the main path writes biases only, so what gradient the encoder has
    comes from the gates' reconstruction, which must leave the decoders alone."""
    dictionary = make(rotary64, "gated").requires_grad_(True)
    x = torch.stack([tokens(rotary64.d_model, seed=s) for s in range(3)])
    dictionary.b_enc.requires_grad_(False)
    for bias in dictionary.b_enc:
        bias.data -= 1e3  # no magnitude anywhere, so the main path is b_dec
    dictionary.rule.gate_bias.data += 1e3 * (-dictionary.rule.gate_scale.data).exp()
    out = reconstruction(dictionary, x, x, TRAINING, torch.zeros(3, 12, dtype=torch.bool))
    out.total.backward()
    assert float(out.l0) == 0
    for weight in dictionary.W_dec:
        assert float(weight.grad.abs().max()) == 0
    for kind in (dictionary.W_enc[0], dictionary.rule.gate_bias, dictionary.rule.gate_scale):
        assert float(kind.grad.abs().max()) > 0


@pytest.mark.parametrize("rule", ["relu", "jumprelu", "gated"])
def test_the_penalty_cannot_be_dodged_by_scaling(rotary64, rule):
    """Encoder times 1/c (and thresholds with it), decoder times c: the same function, the same penalty."""
    dictionary = make(rotary64, rule)
    x = torch.stack([tokens(rotary64.d_model, seed=s) for s in range(3)])
    factor = 0.2 + 4 * torch.rand(12, generator=torch.Generator().manual_seed(4))
    dead = torch.zeros(3, 12, dtype=torch.bool)
    before = reconstruction(dictionary, x, x + 1, TRAINING, dead, penalty=0.7)
    for layer in range(3):
        dictionary.W_enc[layer].data /= factor
        dictionary.b_enc[layer].data /= factor
        dictionary.W_dec[layer].data *= factor[:, None]
    for name, tensor in dictionary.rule.named_parameters():
        if name != "gate_scale":
            tensor.data /= factor
    after = reconstruction(dictionary, x, x + 1, TRAINING, dead, penalty=0.7)
    assert float(before.parts["penalty"]) > 0.1
    torch.testing.assert_close(after.parts["penalty"], before.parts["penalty"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.total, before.total, rtol=1e-12, atol=1e-12)
    for weight in dictionary.W_dec:
        weight.data *= 2
    heavier = reconstruction(dictionary, x, x + 1, TRAINING, dead, penalty=0.7)
    assert float(heavier.parts["penalty"]) > 1.05 * float(before.parts["penalty"])


@pytest.mark.parametrize("rule", ["relu", "jumprelu", "gated"])
def test_a_decoder_row_of_zeros_has_a_finite_gradient(rotary64, rule):
    dictionary = make(rotary64, rule).requires_grad_(True)
    dictionary.W_dec[0].data[2] = 0
    x = torch.stack([tokens(rotary64.d_model, seed=s) for s in range(3)])
    reconstruction(dictionary, x, x, TRAINING, torch.zeros(3, 12, dtype=torch.bool), penalty=1.0).total.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in dictionary.parameters())
    assert float(dictionary.W_dec[0].grad[2].abs().max()) > 0
    for weight in dictionary.W_dec:
        weight.data.zero_()
    out = reconstruction(dictionary, x, x, TRAINING, torch.zeros(3, 12, dtype=torch.bool), penalty=1.0)
    assert float(out.parts["penalty"]) == 0, "a feature that writes nothing costs nothing"


def test_the_sparse_form_is_the_dense_one(double):
    dense = torch.randn(7, 30, generator=torch.Generator().manual_seed(0)).relu()
    dense[2] = 0
    sparse = SparseActivations.of(dense)
    assert sparse.values.shape == (7, int((dense > 0).sum(1).max()))
    assert torch.equal(sparse.dense(30), dense)
    assert SparseActivations.of(torch.zeros(0, 5)).dense(5).shape == (0, 5)
    assert float(SparseActivations.of(torch.zeros(2, 5)).dense(5).abs().sum()) == 0

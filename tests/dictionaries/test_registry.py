"""Every architecture that steps train, under every sparsity rule: configuration, saving, and loss and gradients against
a dense reference that knows nothing of the package's encoders and decoders."""

import itertools
import json
from dataclasses import asdict
from typing import NamedTuple

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

import tiny
from isotrace.activations.harvest import activations
from isotrace.base.errors import DictionaryError
from isotrace.dictionaries import sparsity
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES, RULES
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.training.config import TrainingConfig
from isotrace.training.losses import reconstruction

TRAINING = TrainingConfig(auxiliary=0.25, auxiliary_k=2, bandwidth=0.7, tanh_scale=1.5, dtype="float64")
PENALTY = 0.3


class Case(NamedTuple):
    architecture: str
    rule: str
    prefixes: tuple[int, ...] = ()
    token_normalization: str = "none"

    def make(self, subject, **given) -> Dictionary:
        if self.architecture == "crosslayer":
            given = {"window": 2} | given
        k = 3 if RULES[self.rule].needs_k else None
        shape = {"prefixes": self.prefixes, "token_normalization": self.token_normalization}
        return tiny.random_dictionary(subject, self.architecture, activation=self.rule, k=k, **shape | given)


STEPPED = [name for name in sorted(ARCHITECTURES) if not ARCHITECTURES[name].fitted]
CASES = [Case(*parts) for parts in itertools.product(STEPPED, sorted(RULES), ((), (4, 7, 12)))]
CASES += [Case("skip_transcoder", name, (), "standardize") for name in sorted(RULES)]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(part) for part in case if part))
def case(request):
    return request.param


def inputs(d, tokens=11):
    return torch.randn(2, tiny.N_LAYERS, tokens, d, generator=torch.Generator().manual_seed(1))


def test_everything_is_registered():
    assert {"sae", "transcoder", "skip_transcoder", "crosslayer"} < set(ARCHITECTURES)  # a new one is not listed here
    assert set(RULES) == set(sparsity.__all__) == {"topk", "batchtopk", "relu", "jumprelu", "gated"}
    with pytest.raises(
        DictionaryError, match=f"no architecture 'gated': give one of {', '.join(sorted(ARCHITECTURES))}."
    ):
        ARCHITECTURES["gated"]
    with pytest.raises(DictionaryError, match=r"no sparsity rule 'sae': give one of batchtopk, gated"):
        RULES["sae"]


def test_config_round_trip(case, rotary):
    adapter, config = TypeAdapter(DictionaryConfig), case.make(rotary).config
    assert adapter.validate_json(adapter.dump_json(config)) == config
    assert adapter.validate_python(json.loads(json.dumps(asdict(config)))) == config
    assert type(case.make(rotary)) is ARCHITECTURES[case.architecture]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_and_loaded_it_is_the_same_function(case, rotary, tmp_path, dtype):
    dictionary = case.make(rotary)
    x, _ = inputs(rotary.d_model)
    save_dictionary(dictionary, tmp_path, reference(rotary), dtype=dtype, training={"tokens": 1})
    loaded = load_dictionary(tmp_path, rotary)
    assert loaded.config == dictionary.config
    assert not any(p.requires_grad for p in loaded.parameters())
    state = dictionary.state_dict()
    assert set(loaded.state_dict()) == set(state)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name].to(dtype).float()), name
        state[name].copy_(value)
    assert torch.equal(loaded(x), dictionary(x))
    for layer in range(len(x)):
        dense = [d.encode(layer, x[layer]).dense(12) for d in (loaded, dictionary)]
        assert torch.equal(*dense)
        assert 0 < int((dense[0] > 0).sum()) < dense[0].numel()


def sparse_reference(name: str, h: Tensor, p: dict[str, Tensor], layer: int) -> tuple[Tensor, Tensor | None]:
    """(activations, open gates) `[tokens, 12]` of a whole batch, with k = 3."""
    if name == "topk":
        cut = h.sort(-1, descending=True).values[:, 2:3]
        return h.relu() * (h >= cut), None
    if name == "batchtopk":
        positive = h[h > 0].sort(descending=True).values
        return h.relu() * (h >= positive[min(3 * len(h), len(positive)) - 1]), None
    if name == "jumprelu":
        return h.relu() * (h > p["rule.threshold"][layer]), None
    if name == "gated":
        gate = h * torch.exp(-p["rule.gate_scale"][layer]) + p["rule.gate_bias"][layer]
        return h.relu() * (gate > 0), gate.relu()
    return h.relu(), None


def loss_reference(case, config, p, x, y, dead):
    """(loss, ŷ, every layer's (h, a)): METHODS §1 written out for dense tensors, parameters by name."""
    layers, d = range(len(x)), config.d_out
    mean, deviation, epsilon = 0.0, 1.0, 0.0
    if case.token_normalization == "standardize":
        mean, deviation, epsilon = x.mean(-1, keepdim=True), x.std(-1, keepdim=True), 1e-5
    z = (x - mean) / (deviation + epsilon)
    h = [z[s] @ p[f"W_enc.{s}"] + p[f"b_enc.{s}"] for s in layers]
    found = [sparse_reference(case.rule, h[s], p, s) for s in layers]

    def decoded(features, weights):
        out = []
        for t in layers:
            part = weights[f"b_dec.{t}"] + (z[t] @ weights[f"W_skip.{t}"] if config.skip else 0)
            for s in range(max(0, t - config.window + 1), t + 1):
                part = part + features[s] @ weights[f"W_dec.{s}"][:, (t - s) * d : (t - s + 1) * d]
            out.append(part)
        return torch.stack(out) * deviation + mean

    def error(y_hat):
        var = ((y - y.mean(1, keepdim=True)) ** 2).mean((1, 2))
        return (((y - y_hat) ** 2).mean((1, 2)) / var).sum()

    loss, y_hat, sizes = torch.zeros(()), y, config.prefixes or (config.n_features,)
    for size in sizes:
        first = (torch.arange(config.n_features) < size).to(x)
        y_hat = decoded([a * first for a, _ in found], p)
        loss = loss + error(y_hat) / len(sizes)
    for s, (a, gate) in enumerate(found):
        norms = p[f"W_dec.{s}"].norm(dim=1)
        if case.rule == "jumprelu":
            loss = loss + PENALTY * torch.tanh(TRAINING.tanh_scale * norms * a).sum(-1).mean()
        if case.rule in ("relu", "gated"):
            loss = loss + PENALTY * (norms * (a if gate is None else gate)).sum(-1).mean()
    if case.rule == "gated":
        loss = loss + error(decoded([gate for _, gate in found], {k: v.detach() for k, v in p.items()}))
    residual = ((y - y_hat) / deviation).detach()
    for s in layers:
        if dead[s].any():
            masked = torch.where(dead[s], h[s], -torch.inf).relu()
            masked = masked * (masked >= masked.sort(-1, descending=True).values[:, 1:2])
            part = masked @ p[f"W_dec.{s}"][:, :d]
            loss = loss + TRAINING.auxiliary * ((residual[s] - part) ** 2).mean() / (residual[s] ** 2).mean()
    return loss, y_hat, [(h[s], a) for s, (a, _) in enumerate(found)]


def test_loss_and_every_gradient_are_those_of_the_dense_reference(case, rotary64):
    dictionary = case.make(rotary64).requires_grad_(True)
    x, y = inputs(rotary64.d_model)
    dead = torch.rand(len(x), 12, generator=torch.Generator().manual_seed(2)) < 0.4
    dead[1] = False
    parameters = {name: v.detach().clone().requires_grad_(True) for name, v in dictionary.named_parameters()}
    expected, y_hat, found = loss_reference(case, dictionary.config, parameters, x, y, dead)
    for _, a in found:
        a.retain_grad()
    expected.backward()
    if case.rule == "jumprelu":  # Rajamanoharan et al. 2024b, eq. 11: the step itself has no gradient
        theta, width = parameters["rule.threshold"], TRAINING.bandwidth
        near = [((h - theta[s]).abs() < width / 2) * a.grad for s, (h, a) in enumerate(found)]
        theta.grad = torch.stack([-theta[s] / width * n.sum(0) for s, n in enumerate(near)]).detach()
    out = reconstruction(dictionary, x, y, TRAINING, dead, penalty=PENALTY)
    torch.testing.assert_close(out.total, expected, rtol=1e-12, atol=1e-12)
    active = torch.stack([a for _, a in found]) > 0
    assert torch.equal(out.fired, active.any(1))
    assert float(out.l0) == pytest.approx(float(active.sum(-1).double().mean()))
    variance = ((y - y.mean(1, keepdim=True)) ** 2).mean((1, 2))
    torch.testing.assert_close(out.fve, 1 - ((y - y_hat) ** 2).mean((1, 2)) / variance, rtol=1e-12, atol=1e-12)
    out.total.backward()
    for name, parameter in dictionary.named_parameters():
        wanted = parameters[name].grad
        assert float(wanted.abs().max()) > 0, name
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_inference_is_the_dense_reference(case, rotary64):
    """Of single tokens, so that a rule that looks at its batch must not."""
    dictionary = case.make(rotary64)
    config, (x, y) = dictionary.config, inputs(rotary64.d_model)
    whole, parameters = dictionary(x), dict(dictionary.named_parameters())
    if case.rule == "batchtopk":  # at inference a jumprelu whose threshold is shared
        case, parameters = case._replace(rule="jumprelu"), parameters | {"rule.threshold": dictionary.rule.threshold}
    _, y_hat, found = loss_reference(case, config, parameters, x, y, torch.zeros(len(x), 12))
    torch.testing.assert_close(whole, y_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dictionary(x[:, 3:5]), whole[:, 3:5], rtol=1e-12, atol=1e-12)
    dense = {s: dictionary.encode(s, x[s]).dense(12) for s in range(len(x))}
    for s, (h, a) in enumerate(found):
        torch.testing.assert_close(dictionary.preactivations(s, x[s]), h, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dense[s], a, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dictionary.decode(s, dense, x[s]), y_hat[s], rtol=1e-12, atol=1e-12)
        batched = dictionary.encode(s, x[s].expand(2, 1, -1, -1)).dense(12)
        torch.testing.assert_close(batched, a.expand(2, 1, -1, -1), rtol=1e-12, atol=1e-12)


def test_padding_changes_nothing(case, rotary64):
    """The real tokens of a padded batch are those of every sequence alone: same activations, same loss."""
    dictionary = case.make(rotary64)
    sites = list(dict.fromkeys([*dictionary.config.reads, *dictionary.config.writes]))
    reads, writes = ([sites.index(site) for site in s] for s in (dictionary.config.reads, dictionary.config.writes))
    molecules = ["CC", "c1cc[nH]c1", "CC(=O)N"]
    together = activations(rotary64, rotary64.tokenize(molecules), sites)
    apart = torch.cat([activations(rotary64, rotary64.tokenize([m]), sites) for m in molecules], 1)
    assert together.shape == apart.shape
    for layer, place in enumerate(reads):
        first, second = (dictionary.encode(layer, t[place]).dense(12) for t in (together, apart))
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    dead = torch.zeros(len(reads), 12, dtype=torch.bool)
    first, second = (
        reconstruction(dictionary, tokens[reads], tokens[writes], TRAINING, dead, penalty=PENALTY)
        for tokens in (together, apart)
    )
    torch.testing.assert_close(first.total, second.total, rtol=1e-9, atol=1e-9)
    assert torch.equal(first.fired, second.fired)

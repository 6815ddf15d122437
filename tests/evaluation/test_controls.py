"""Each control is what it says: exact where it must be, optimal where it is fitted."""

import copy

import numpy as np
import pytest
import torch

import tiny
from isotrace.activations.harvest import Corpus
from isotrace.base.identity import identity
from isotrace.dictionaries.build import build, configure
from isotrace.evaluation import controls
from isotrace.evaluation.fidelity import MODES, evaluate

SEQUENCES = tiny.MOLECULES * 2


@pytest.fixture(scope="module")
def gelu_subject(tmp_path_factory):
    """A slightly trained ESM: its neurons can be negative."""
    model = tiny.fit(tiny.tiny_model("esm-rotary").eval(), tiny.MOLECULES, steps=60)
    return tiny.load_tiny(tiny.save_subject(model, tmp_path_factory.mktemp("gelu") / "esm"))


@pytest.fixture
def sample(gelu_subject):
    corpus = Corpus.of(gelu_subject, tiny.MOLECULES)
    return controls.Sample.of(gelu_subject, corpus, mask_rate=0.3, seed=0)


@pytest.fixture
def dictionary(gelu_subject):
    return tiny.random_dictionary(gelu_subject, window=2)


def scores(subject, control):
    return evaluate(subject, control, SEQUENCES, mask_rate=0.3, n_bootstrap=20)


def assert_exact(found):
    assert found["ablated"]["cross_entropy"] - found["clean"]["cross_entropy"] > 0.1
    for mode in MODES:
        assert found[mode]["loss_recovered"] == pytest.approx(1, abs=1e-3)
        assert found[mode]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["fve"] == pytest.approx([1] * len(found["fve"]), abs=1e-5)


@pytest.mark.parametrize("k", [24, 48], ids=["d_ff", "two d_ff"])
def test_all_neurons_are_the_mlp(gelu_subject, k):
    assert_exact(scores(gelu_subject, controls.neurons(gelu_subject, (0, 1, 2), k)))


def test_few_neurons_are_those_that_write_most(gelu_subject, sample):
    k, layer = 5, 1
    control = controls.neurons(gelu_subject, (0, layer), k)
    hidden, true = sample.at(f"layers.{layer}.neuron", f"layers.{layer}.mlp_out")
    out = gelu_subject.module(gelu_subject.family.mlp_out, layer)
    size = hidden.abs() * out.weight.norm(dim=0)
    kept = hidden * (size >= size.topk(k, dim=1).values[:, -1:])
    written = control.decode(1, {1: control.encode(1, hidden).dense(48)}, hidden)
    torch.testing.assert_close(written, out(kept), rtol=1e-4, atol=1e-5)
    assert float((hidden < 0).float().mean()) > 0.05
    assert float((written - true).norm() / true.norm()) > 0.05


def test_all_components_are_the_output(gelu_subject, sample, dictionary):
    assert_exact(scores(gelu_subject, controls.principal_components(dictionary, sample, tiny.D_MODEL)))


def test_components_are_orthonormal_and_ordered_by_singular_values(sample, dictionary):
    control = controls.principal_components(dictionary, sample, 3)
    y = sample.at("layers.1.mlp_out")[0].double()
    basis = control.W_enc[1][:, : tiny.D_MODEL].double()
    projected = (y - y.mean(0)) @ basis
    expected = torch.linalg.svdvals(y - y.mean(0)).sort().values
    torch.testing.assert_close(projected.norm(dim=0).sort().values, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(tiny.D_MODEL).double(), rtol=1e-5, atol=1e-5)
    # three components of every token, the largest in size
    best = projected * (projected.abs() >= projected.abs().topk(3, dim=1).values[:, -1:])
    written = control(torch.stack(sample.at(*control.config.reads)))[1]
    torch.testing.assert_close(written.double(), best @ basis.T + y.mean(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("hookpoint", ["layers.{}.mlp_in", "layers.{}.mlp_out"])
def test_the_random_readout_is_the_least_squares_solution(gelu_subject, sample, hookpoint):
    """Rows √λ·I under the activations turn the penalty into ordinary least squares, solved by numpy."""
    name = "sae" if hookpoint.endswith("out") else "transcoder"
    dictionary = build(configure(gelu_subject, name, n_features=12, k=3), seed=1)
    control = controls.random_features(dictionary, sample, 3, seed=0)
    x, y = (t.double() for t in sample.at(hookpoint.format(1), "layers.1.mlp_out"))
    encoder = control.W_enc[1].double()
    np.testing.assert_allclose(encoder.norm(dim=0), 1, rtol=1e-5)
    h = (x - x.mean(0)) @ encoder
    active = (h * (h >= h.topk(3, dim=1).values[:, -1:])).relu().numpy()
    n, features = active.shape
    penalty = controls.RIDGE * (active**2).sum() / features
    design = np.block([[active, np.ones((n, 1))], [np.sqrt(penalty) * np.eye(features), np.zeros((features, 1))]])
    target = np.vstack([y.numpy(), np.zeros((features, tiny.D_MODEL))])
    expected = np.linalg.lstsq(design, target, rcond=None)[0]
    assert np.abs(expected[:-1]).max() > 0.01
    np.testing.assert_allclose(control.W_dec[1].numpy(), expected[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(control.b_dec[1].numpy(), expected[-1], rtol=1e-3, atol=1e-4)


def test_shuffled_rows_are_the_same_rows_elsewhere(dictionary, sample):
    control, site = controls.shuffled(dictionary, seed=0), dictionary.config.reads
    own = control.state_dict()
    assert own.keys() - dictionary.state_dict().keys() == {"order"}
    assert all(tensor.data_ptr() == own[name].data_ptr() for name, tensor in dictionary.state_dict().items())
    assert identity(control) != identity(dictionary)
    generator = torch.Generator().manual_seed(0)
    permuted = copy.deepcopy(dictionary)
    for weight in permuted.W_dec:
        weight.data = weight.data[torch.randperm(len(weight), generator=generator)]
    x = [sample.at(name)[0] for name in site]
    active = {layer: dictionary.encode(layer, tokens) for layer, tokens in enumerate(x)}
    renamed = {layer: control.encode(layer, tokens) for layer, tokens in enumerate(x)}
    for layer, tokens in enumerate(x):
        assert torch.equal(renamed[layer].values, active[layer].values)
        assert not torch.equal(renamed[layer].indices, active[layer].indices)
        dense = [
            {s: a.dense(dictionary.config.n_features) for s, a in of.items() if s <= layer} for of in (active, renamed)
        ]
        written = [d.decode(layer, a, tokens) for d, a in ((permuted, dense[0]), (control, dense[1]))]
        torch.testing.assert_close(*written)
        assert not torch.allclose(written[0], dictionary.decode(layer, dense[0], tokens))


def test_controls_match_the_dictionary_in_layers_site_and_l0(gelu_subject, sample):
    config = configure(gelu_subject, "transcoder", layers=[0, 2], n_features=12, k=4)
    dictionary = build(config, seed=0)
    for bias in dictionary.b_enc:
        bias.data.fill_(-100)
        bias.data[:2] = 100  # two features are always active, the others never
    made = controls.make_controls(dictionary, sample, seed=0)
    assert [control.name for control in made] == list(controls.NAMES)
    for control in made:
        assert control.reason is None
        assert control.dictionary.config.writes == ["layers.0.mlp_out", "layers.2.mlp_out"]
    assert [control.dictionary.config.k for control in made] == [2, 2, 2, 4]
    again = controls.make_controls(dictionary, sample, seed=0)
    for one, two in zip(made, again, strict=True):
        for key, value in one.dictionary.state_dict().items():
            assert torch.equal(value, two.dictionary.state_dict()[key])


def test_neurons_do_not_apply_to_the_residual_stream(gelu_subject, sample):
    sites = {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"}
    dictionary = build(configure(gelu_subject, "sae", layers=[1], n_features=8, k=2, **sites), seed=0)
    made = {control.name: control for control in controls.make_controls(dictionary, sample, seed=0)}
    assert made["neurons"].dictionary is None
    assert "resid_post" in made["neurons"].reason
    assert made["pca"].dictionary.config.writes == ["layers.1.resid_post"]


def test_the_neuron_hookpoint_is_what_the_last_linear_map_reads(subject):
    batch = subject.tokenize(["CCO", "c1cc[nH]c1C"])
    captured = subject.run(batch, capture=["layers.1.neuron", "layers.1.mlp_out"]).captured
    assert captured["layers.1.neuron"].shape[-1] == subject.model.config.intermediate_size
    out = subject.module(subject.family.mlp_out, 1)
    torch.testing.assert_close(out(captured["layers.1.neuron"]), captured["layers.1.mlp_out"])

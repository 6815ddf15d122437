"""Products with the Hessian of networks and of subjects, beside finite differences and explicit Hessians."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.progress import silent
from isotrace.subjects.probe import pool
from isotrace.transfer.curvature import View, loss_of, measure_all
from isotrace.transfer.curvature.subject_losses import masked_loss, parameters_of, task_loss
from tiny import MOLECULES, fit, in_float64, load_tiny, random_probe, save_subject, tiny_model

VARIANTS = ("esm-absolute", "esm-rotary", "bert", "albert", "modernbert", "deberta-v2", "molformer")


@pytest.fixture(scope="module", params=VARIANTS)
def subject(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return in_float64(load_tiny(save_subject(tiny_model(request.param), folder)))


@pytest.fixture(scope="module")
def esm(tmp_path_factory):
    model = fit(tiny_model("esm-absolute"), MOLECULES, 60)
    return in_float64(load_tiny(save_subject(model, tmp_path_factory.mktemp("esm"))))


def differences(view: View, vector, step: float):
    """Central differences of the gradient along `vector`."""
    at = view.loss.at
    return (view.gradient(at + step * vector)[1] - view.gradient(at - step * vector)[1]) / (2 * step)


def test_products_with_layer_norm_agree_with_finite_differences():
    """curvlinops 3.0.1 is wrong by 9–40 % here, in the block of the norm's weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3)).double()
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x, y = torch.randn(30, 5).double(), torch.randint(0, 3, (30,))
    named = dict(net.named_parameters())

    def function(theta):
        parts = theta.split([p.numel() for p in named.values()])
        given = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(net, given, (x,)), y)

    loss = loss_of(function, *named.values())
    vector = torch.randn(len(loss.at), dtype=torch.float64)
    view = View(loss)
    product, expected = view.product(vector), differences(view, vector, 1e-5)
    for block in loss.blocks:  # the norm's among them
        found, true = block.of(product), block.of(expected)
        assert float((found - true).norm() / true.norm()) < 3e-5


def test_products_of_subjects_agree_with_finite_differences(subject):
    """Families that compute in float32 what others compute in the weights' dtype need a longer step."""
    view = View(masked_loss(subject, MOLECULES, 0, rows=4))
    vector = torch.randn(view.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector /= vector.norm()
    product = view.product(vector)
    closest = min(
        float((product - differences(view, vector, step)).norm() / product.norm()) for step in (1e-5, 1e-3, 1e-2)
    )
    assert closest < 1e-4


def test_a_loss_is_what_a_pass_of_the_subject_gives(subject):
    """`Subject.run` gives no gradients; it computes the same."""
    loss = masked_loss(subject, MOLECULES[:1], 0, share=1.0)
    batch = subject.tokenize(MOLECULES[:1])
    real = batch.mask & ~subject.special(batch.ids)
    logits = subject.run(batch.with_ids(batch.ids.masked_fill(real, subject.mask_id))).logits[real]
    expected = nn.functional.cross_entropy(logits, batch.ids[real])
    assert View(loss).value(loss.at) == pytest.approx(float(expected), rel=1e-9)
    assert loss.n_examples == int(real.sum())


def test_products_are_those_of_the_explicit_hessian(esm):
    loss = masked_loss(esm, MOLECULES, 0)
    block = next(b for b in loss.blocks if b.name.endswith("layer.1.LayerNorm.weight"))
    inside = slice(block.start, block.start + block.size)

    def of_few(part):
        theta = torch.cat([loss.at[: block.start], part, loss.at[inside.stop :]])
        return sum(piece(theta) for piece in loss.parts)

    exact = torch.stack([*torch.autograd.functional.hessian(of_few, loss.at[inside])])
    units = torch.zeros(block.size, len(loss.at), dtype=loss.at.dtype)
    units[:, inside] = torch.eye(block.size, dtype=loss.at.dtype)
    found = View(loss).products(units)[:, inside]
    assert torch.allclose(found, exact, rtol=1e-8, atol=1e-12)


def test_parameters_without_gradient_are_left_out_and_tied_ones_counted_once(esm):
    loss = masked_loss(esm, MOLECULES, 0)
    names = {block.name for block in loss.blocks}
    assert any("contact_head" in name for name in loss.left_out)
    assert names | set(loss.left_out) == {name for name, _ in esm.model.named_parameters()}
    assert len(loss.at) < sum(p.numel() for p in esm.model.parameters())
    tied = next(b for b in loss.blocks if b.name.endswith("word_embeddings.weight"))
    assert not any("decoder.weight" in name for name in names)
    changed = loss.at.clone()
    tied.of(changed).mul_(2)  # reaches the head too
    assert View(loss).value(changed) != pytest.approx(View(loss).value(loss.at), rel=1e-3)


def test_losses_leave_the_subject_as_it_was(esm):
    before = {name: value.clone() for name, value in esm.model.state_dict().items()}
    loss = masked_loss(esm, MOLECULES, 0)
    View(loss).products(torch.ones(1, len(loss.at), dtype=loss.at.dtype))
    View(loss).value(torch.zeros_like(loss.at))
    assert all(torch.equal(value, before[name]) for name, value in esm.model.state_dict().items())
    assert not any(p.requires_grad for p in esm.model.parameters())


def test_masks_are_fixed_by_the_seed_and_batches_do_not_matter(esm):
    values = {rows: View(masked_loss(esm, MOLECULES, 0, share=1.0, rows=rows)) for rows in (3, 10)}
    few, many = (view.value(view.loss.at) for view in values.values())
    assert few == pytest.approx(many, rel=1e-9)
    same, other = (View(masked_loss(esm, MOLECULES, seed, rows=10)) for seed in (0, 1))
    again = View(masked_loss(esm, MOLECULES, 0, rows=10))
    assert same.value(same.loss.at) == again.value(same.loss.at)
    assert same.value(same.loss.at) != other.value(same.loss.at)


def test_the_gauss_newton_trace_of_a_subject(esm):
    """Mean over masked tokens of Σ_y p_y ‖∂ ln p_y/∂θ‖², every y in turn."""
    loss = masked_loss(esm, ["CCCl"], 0, share=1.0)
    (row,) = measure_all(loss, ["fisher"], 0, silent, settings={"fisher": {"draws": 80}})
    batch = esm.tokenize(["CCCl"])
    real = batch.mask & ~esm.special(batch.ids)
    weights = [weight for name, weight in esm.model.named_parameters() if name not in loss.left_out]
    esm.model.requires_grad_(True)
    final = esm.hidden(batch.ids.masked_fill(real, esm.mask_id), batch.mask)[real]
    logs = esm.head(final).log_softmax(-1)
    exact = 0.0
    for one in logs.flatten():
        gradients = torch.autograd.grad(one, weights, retain_graph=True)
        exact += float(one.detach().exp()) * sum(float(g.square().sum()) for g in gradients) / len(logs)
    esm.model.requires_grad_(False)
    assert row.error is not None
    assert row.error < 0.3 * exact
    assert abs(row.value - exact) < 3 * row.error


def test_a_task_loss_is_the_probe_s_error(esm):
    probe = random_probe(esm)
    object.__setattr__(probe.config, "sd", 2.0)
    labels = [0.1 * i for i in range(len(MOLECULES))]
    loss = task_loss(esm, probe, MOLECULES, labels, rows=3)
    batch = esm.tokenize(MOLECULES)
    read = probe.value(pool(esm, batch, esm.hidden(batch.ids, batch.mask, probe.config.layers)))[:, 0]
    expected = ((read - torch.tensor(labels)) / 2).square().mean()
    view = View(loss)
    assert view.value(loss.at) == pytest.approx(float(expected), rel=1e-6)
    assert any("lm_head" in name for name in loss.left_out)
    rows = measure_all(loss, ["trace", "fisher"], 0, silent, settings={"trace": {"draws": 4}, "fisher": {"draws": 4}})
    assert all(math.isfinite(row.value) for row in rows)


def test_the_barrier_between_a_subject_and_itself_is_zero(esm, tmp_path):
    loss = masked_loss(esm, MOLECULES, 0)
    other = load_tiny(save_subject(tiny_model("esm-absolute"), tmp_path / "other"))
    rows = {r.quantity: r.value for r in measure_all(loss, ["barrier"], 0, silent, other=parameters_of(esm, loss))}
    assert rows["barrier"] == pytest.approx(0, abs=1e-12)
    rows = {r.quantity: r.value for r in measure_all(loss, ["barrier"], 0, silent, other=parameters_of(other, loss))}
    assert rows["other_loss"] > rows["own_loss"]
    wrong = load_tiny(save_subject(tiny_model("bert"), tmp_path / "wrong"))
    with pytest.raises(SubjectError, match="one architecture"):
        parameters_of(wrong, loss)


def test_what_has_no_such_loss_is_refused(esm, tmp_path):
    causal = load_tiny(save_subject(tiny_model("gpt2"), tmp_path))
    with pytest.raises(SubjectError, match="fills no masks"):
        masked_loss(causal, MOLECULES, 0)
    with pytest.raises(InputError, match="at least one"):
        masked_loss(esm, [], 0)
    probe = random_probe(esm)
    with pytest.raises(InputError, match="known sd"):
        task_loss(esm, probe, MOLECULES[:1], [0.0])
    with pytest.raises(InputError, match="no regression label"):
        task_loss(esm, probe, MOLECULES[:1], [math.nan])

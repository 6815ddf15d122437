"""Hookpoints with one vector of a whole sequence: what stands there, and what becomes of the subject when it is set."""

import numpy as np
import pytest
import torch

import isotrace
import tiny
from isotrace.activations.harvest import Corpus, activations
from isotrace.activations.stream import SubjectStream
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import Features, active_features
from isotrace.dictionaries.featuriser import Featuriser
from isotrace.dictionaries.replacement import replaced_hidden
from isotrace.evaluation.fidelity import evaluate, mean_activations
from isotrace.interventions import Intervention, Nodes, Plan, Set
from isotrace.interventions.components import mean_values
from isotrace.subjects.dispatch import hookpoints_edited

TEXTS = ["CCOCC", "c1cc[nH]c1", "CN"]


@pytest.fixture(scope="module")
def ted(folders):
    return tiny.in_float64(tiny.load_tiny(folders["smited"]))


def sae(subject, kind, **given):
    site = f"layers.{{}}.{kind}"
    return tiny.random_dictionary(subject, "sae", hookpoint_in=site, hookpoint_out=site, **given)


@pytest.mark.every_family
@torch.no_grad()
def test_pooled_is_the_mean_of_the_hidden_state_and_setting_it_moves_every_token_alike(subject, variant):
    """Of every layer as `hidden` counts them, the last behind the final norm; padding has no part in it."""
    batch = subject.tokenize(TEXTS)
    real = batch.mask[..., None].float()
    wanted = torch.randn(len(TEXTS), 1, subject.d_model, generator=torch.Generator().manual_seed(0))
    for layer in range(subject.n_layers):
        name, reads = f"layers.{layer}.pooled", (layer + 1,)
        clean = subject.hidden(batch.ids, batch.mask, reads)
        mean = (clean * real).sum(1) / real.sum(1)
        torch.testing.assert_close(activations(subject, batch, [name])[0], mean)
        assert torch.equal(subject.run(batch, capture=[name]).final, subject.run(batch).final), (
            "reading changes nothing"
        )
        with hookpoints_edited(subject, {name: lambda x: wanted}):
            edited = subject.hidden(batch.ids, batch.mask, reads)
        shift = (wanted - mean[:, None]) * real
        torch.testing.assert_close(edited, clean + shift, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_latent_is_what_is_decoded(double, ted):
    """Alone as in a padded batch; an edit there changes what is decoded and nothing else."""
    batch, view = ted.tokenize(TEXTS), ted.reconstructing()
    latent = activations(ted, batch, ["layers.2.latent"])[0]
    for row, text in zip(latent, TEXTS, strict=True):
        torch.testing.assert_close(activations(ted, ted.tokenize([text]), ["layers.2.latent"])[0, 0], row)
    base, final = ted.model.base_model, ted.run(batch).final
    torch.testing.assert_close(base.pooled(final, batch.mask)[:, 0], latent)
    other = torch.randn(3, 1, 16)
    with hookpoints_edited(ted, {"layers.2.latent": lambda x: other}):
        assert torch.equal(ted.run(batch).final, final)
        found = view.run(batch).logits
    torch.testing.assert_close(found, base.decoder["lang_model"](base.unpooled(other, batch.ids.shape[1])))
    assert not torch.allclose(found, view.run(batch).logits)


@torch.no_grad()
def test_features_of_the_latent_steer_what_is_decoded(double, ted):
    """Set on one, a feature adds what its decoder row says, and `intervene` tells what becomes of every place."""
    dictionary = sae(ted, "latent", n_features=12, k=3)
    batch, view = ted.tokenize(["CCOCC"]), ted.reconstructing()
    plan = Plan.of(Intervention(Features(dictionary), Set(2.5), Nodes(((0, -1, 5),))))
    latent = activations(ted, batch, ["layers.2.latent"])
    own = dictionary.encode(0, latent[0]).dense(12)[0, 5]
    moved = latent[0] + (2.5 - own) * dictionary.W_dec[0][5]
    base = ted.model.base_model
    expected = base.decoder["lang_model"](base.unpooled(moved[None], batch.ids.shape[1]))
    torch.testing.assert_close(view.run(batch, plan=plan).logits, expected)
    table = isotrace.intervene(view, ["CCOCC"], plan).to_frame()
    clean = view.run(batch).logits
    logs = [logits[0].log_softmax(-1) for logits in (clean, expected)]
    torch.testing.assert_close(torch.tensor(table["kl"]), (logs[0].exp() * (logs[0] - logs[1])).sum(-1))
    assert isotrace.intervene(ted, ["CCOCC"], plan).to_frame()["kl"].max() == 0, "the encoder's head does not read it"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["latent", "pooled"])
def test_features_have_one_activation_of_a_sequence(double, ted, kind):
    dictionary = sae(ted, kind, n_features=6, k=6)
    assert dictionary.config.layers == (2,)
    batch = ted.tokenize(TEXTS)
    dense = dictionary.encode(0, activations(ted, batch, dictionary.config.reads)[0]).dense(6).clamp(min=0)
    (found,) = active_features(ted, dictionary, [batch])
    table = torch.zeros(3, 6)
    table[found["sequence"].tolist(), found["feature"].tolist()] = torch.tensor(found["activation"].tolist())
    torch.testing.assert_close(table, dense, rtol=1e-6, atol=1e-6)
    assert set(found["position"]) == {-1}
    for pool in ("max", "mean"):
        rows = Featuriser(ted, dictionary, pool=pool, sparse_output=False).fit(TEXTS).transform(TEXTS)
        np.testing.assert_allclose(rows, dense.numpy(), rtol=1e-6)
    batches = [ted.tokenize([text]) for text in TEXTS]
    signed = dictionary.encode(0, activations(ted, batch, dictionary.config.reads)[0]).dense(6)
    for given in (batches, [batch]):
        torch.testing.assert_close(mean_values(ted, Features(dictionary), given)[0][:, 0], signed.mean(0))


@torch.no_grad()
def test_a_stream_gives_a_row_per_sequence_and_masks_nothing(ted):
    corpus = Corpus.of(ted, tiny.MOLECULES)
    settings = {"block_tokens": 10, "batch_tokens": 30, "mask_rate": None, "seed": 0, "special_tokens": False}
    stream = SubjectStream(ted, corpus, ["layers.2.latent", "layers.2.pooled"], **settings)
    assert stream.describe()["mask_rate"] == 0
    block = next(stream.blocks())
    expected = [activations(ted, ted.tokenize([text]), stream.hookpoints)[:, 0] for text in tiny.MOLECULES]
    assert block.activations.shape == (2, 10, 16)
    ours = {tuple(row.round(decimals=5).tolist()) for row in block.activations[0]}
    assert ours == {tuple(row[0].round(decimals=5).tolist()) for row in expected}
    mean = mean_activations(ted, corpus, ["layers.2.pooled"], 0)[0]
    torch.testing.assert_close(mean, torch.stack(expected)[:, 1].mean(0))


@torch.no_grad()
def test_fidelity_of_the_latent_is_asked_of_what_is_decoded(folders):
    """An exact autoencoder recovers all of the loss, which is that of a plain loop."""
    ted = tiny.load_tiny(folders["smited"])
    dictionary = sae(ted, "latent", n_features=32, k=32)
    identity = torch.cat([torch.eye(16), -torch.eye(16)])
    dictionary.W_enc[0].copy_(identity.T)
    dictionary.W_dec[0].copy_(identity)
    for bias in (dictionary.b_enc[0], dictionary.b_dec[0]):
        bias.zero_()
    found = evaluate(ted, dictionary, tiny.MOLECULES, n_bootstrap=20)
    assert found["free_running"]["loss_recovered"] == pytest.approx(1)
    assert found["fve"][0] == pytest.approx(1)
    assert found["l0"] == pytest.approx(16)
    losses, view = [], ted.reconstructing()
    for text in tiny.MOLECULES:
        batch = ted.tokenize([text])
        losses.append(torch.nn.functional.cross_entropy(view.run(batch).logits[0], batch.ids[0], reduction="none"))
    assert found["clean"]["cross_entropy"] == pytest.approx(float(torch.cat(losses).mean()))
    assert found["n_predicted"] == sum(map(len, losses))
    pooled = sae(ted, "pooled")
    with pytest.raises(SubjectError, match="asked of whole sequences: leave the masking rate out"):
        evaluate(ted, dictionary, tiny.MOLECULES, mask_rate=0.2)
    assert 0 < evaluate(ted, pooled, tiny.MOLECULES, n_bootstrap=20)["n_predicted"] < found["n_predicted"]
    hidden = replaced_hidden(ted, pooled, batch, "free_running")
    written = pooled(activations(ted, batch, pooled.config.reads))[0]
    torch.testing.assert_close(hidden[batch.mask].mean(0), written[0], rtol=1e-4, atol=1e-5)


def test_what_is_not_there_is_refused(double, ted, rotary):
    batch = rotary.tokenize(["CCO"])
    for subject, names, message in (
        (rotary, ["layers.2.latent"], r"esm has no latent of its own: give layers\.2\.pooled"),
        (ted, ["layers.1.latent"], r"behind the last layer: give layers\.2\.latent"),
        (rotary, ["layers.3.pooled"], r"no hookpoint 'layers\.3\.pooled': give layers\.N\.pooled, N below 3"),
        (rotary, ["layers.2.pooled", "layers.2.mlp_in"], "do not mix: take them apart"),
    ):
        with pytest.raises(SubjectError, match=message):
            activations(subject, batch, names)
    with pytest.raises(SubjectError, match="no latent of its own, so nothing is decoded"):
        rotary.reconstructing()
    plan = Plan.of(Intervention(Features(sae(ted, "latent")), Set(0.0), Nodes(((0, 2, 5),))))
    with pytest.raises(InputError, match="no position 2: give 0 to 0"):
        ted.run(ted.tokenize(["CCO"]), plan=plan)

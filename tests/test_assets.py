"""The cards of the bundled assets, measured again on small held-out samples."""

import json
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, jaxtyped
from sklearn.metrics import roc_auc_score

from build_clt import held_out_part, replaced
from card_molm import masked_scores, validity
from isotrace.activations.harvest import Corpus, mlp_activations
from isotrace.dictionaries.saving import load_dictionary
from isotrace.dictionaries.shelf import shelf_of
from isotrace.evaluation.fidelity import evaluate
from isotrace.probing.states import pooled_states
from isotrace.subjects.probe import load_probe
from isotrace.subjects.sources.source import assets
from isotrace.subjects.subject import Subject, load_subject

DATA = Path(__file__).parent / "data"
HELD_OUT = (DATA / "heldout.smi").read_text().split()


@pytest.fixture(scope="module")
def molm():
    return load_subject("bundled:molm")


@pytest.fixture(scope="module")
def clt(molm):
    return load_dictionary("bundled:molm-clt", molm)


def card(name):
    return json.loads((assets() / name).read_text())


@pytest.mark.card
def test_the_subject_has_learned_chemistry(molm):
    """Held-out cross-entropy far below a unigram model and an untrained copy, and as the card says."""
    counts = torch.ones(len(molm.tokenizer))
    for row in Corpus.of(molm, HELD_OUT).ids:
        counts.index_add_(0, torch.from_numpy(row[1:-1]), torch.ones(len(row) - 2))
    found = masked_scores(molm, HELD_OUT, counts / counts.sum(), seed=1)
    torch.manual_seed(0)
    copy = Subject(type(molm.model)(molm.model.config), molm.tokenizer, molm.files)
    copy.model.set_attn_implementation("isotrace")
    untrained = masked_scores(copy, HELD_OUT, counts / counts.sum(), seed=1)["all"]
    claimed = card("molm/card.json")["trained"]["all"]
    assert found["all"]["cross_entropy"] < 0.4 * found["all"]["unigram"]
    assert found["all"]["cross_entropy"] < 0.2 * untrained["cross_entropy"]
    assert found["all"]["cross_entropy"] == pytest.approx(claimed["cross_entropy"], abs=0.1)
    assert found["ring"]["top1"] > 0.6
    assert found["branch"]["top1"] > 0.6


@pytest.mark.card
def test_molecules_stay_as_valid_after_sampling_as_the_card_says(molm):
    found, claimed = validity(molm, HELD_OUT, 3, "confident", 0.9), card("molm/card.json")
    assert found["valid"] == pytest.approx(claimed["validity_nucleus"]["valid"], abs=0.06)
    assert found["valid"] > 10 * claimed["validity_untrained"]["valid"]


@pytest.mark.card
def test_fidelity_is_what_the_card_says(molm, clt):
    found = evaluate(molm, clt, HELD_OUT, seed=3, n_bootstrap=50)
    claimed = shelf_of(clt).fidelity
    assert found["free_running"]["loss_recovered"] >= 0.95
    for mode in ("free_running", "teacher_forced"):
        assert found[mode]["loss_recovered"] == pytest.approx(claimed[mode]["loss_recovered"], abs=0.015)
    assert found["l0"] == pytest.approx(clt.config.k, abs=0.5)
    assert found["fve"] == pytest.approx(claimed["fve"], abs=0.05)


@pytest.mark.card
def test_the_probe_survives_the_replacement_of_every_mlp(molm, clt):
    probe, _ = load_probe(molm, "bbb")
    examples, y = held_out_part(molm, "bbb", "bbb")
    auroc, layers = {}, probe.config.layers
    for name, hidden in (("subject", None), ("replaced", lambda b: replaced(molm, clt, layers, b))):
        x = pooled_states(molm, examples, layers, probe.config.pool, hidden=hidden)
        auroc[name] = roc_auc_score(y, probe.value(torch.from_numpy(x)))
    assert abs(auroc["subject"] - auroc["replaced"]) <= 0.02
    claimed = shelf_of(clt).card["probes_free_running"]["bbb"]
    for name, value in auroc.items():
        assert value == pytest.approx(claimed[name]["auroc"]["value"], abs=5e-3)


def test_shapes_are_as_documented(molm, clt):
    batch = molm.tokenize(["CCO", "CCN"])
    with jaxtyped("context"):  # one binding of every name: a d_model that differs anywhere fails
        x, y, final = mlp_activations(molm, batch)
        assert isinstance(x, Float[torch.Tensor, "layers batch tokens d_model"])
        assert isinstance(y, Float[torch.Tensor, "layers batch tokens d_model"])
        assert isinstance(final, Float[torch.Tensor, "batch tokens d_model"])
        sparse = clt.encode(0, final)
        assert isinstance(sparse.values, Float[torch.Tensor, "batch tokens k"])
        assert isinstance(clt.preactivations(0, final), Float[torch.Tensor, "batch tokens features"])
        assert isinstance(clt(x.flatten(1, 2)), Float[torch.Tensor, "layers _ d_model"])
        assert isinstance(clt.write_vectors(2, sparse.indices), Float[torch.Tensor, "batch tokens k targets d_model"])
        assert isinstance(clt.decoder_norms(), Float[torch.Tensor, "layers features"])

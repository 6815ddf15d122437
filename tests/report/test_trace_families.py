"""Reports on subjects of other families: two streams, no mask, no head."""

from dataclasses import replace

import pytest
import tokenizers
import torch
from transformers import BertModel

import plain_models
import tiny
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.base.errors import SubjectError
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.molecule import parse
from isotrace.domains.molecule.spelling import spellings
from isotrace.report.trace.payload import top_outputs
from isotrace.report.trace.record import Record

QUICK = TraceConfig(max_features=60, n_nodes=8, n_controls=2, n_spellings=0, circuit="effects")
SMILES = "CC(=O)Nc1ccccc1"


@pytest.fixture
def report(tmp_path):
    """Trace of a subject, with a random dictionary that no one has annotated."""

    def traced(subject, target="mask:3", sequence=SMILES, config=QUICK, **given) -> Record:
        found = trace(subject, tiny.random_dictionary(subject, **given), sequence, target, config)
        return Record(found, "tiny", "random", FeatureTables(), None)

    return traced


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def shown(subject, variant, report, made):
    """(trace, result) of every family, made once."""
    if variant not in made:
        found = report(subject, "mask:4")
        made[variant] = found, found.result()
    return made[variant]


@pytest.mark.every_family
def test_nodes_have_ids_of_their_own(shown):
    found, result = shown
    ids = [found.node_id(node) for node in range(found.traced.graph.n_nodes)]
    assert len(set(ids)) == len(ids)
    viewer = result.view["viewer"]
    assert len({n["node_id"] for n in viewer["nodes"]}) == len(viewer["nodes"])
    assert result.page()


@pytest.mark.every_family
def test_labels_say_which_side(subject, variant, shown):
    found, result = shown
    nodes = result.payload()["nodes"]
    texts = found.traced.tokens
    embeddings = [n["label"] for n in nodes if n["kind"] == "token"]
    learned = variant in ("esm-absolute", "bert", "roberta", "albert", "gpt2", "bart")
    errors = {n["label"].removesuffix(f" {texts[n['pos']]}"): n["layer"] for n in nodes if n["kind"] == "error"}
    if variant not in ("bart", "t5-relu", "t5-gated"):
        assert embeddings == [f"{kind} {text}" for kind in ("token", "position")[: 1 + learned] for text in texts]
        assert all(name == f"error of layer {layer}" for name, layer in errors.items())
        return
    own, behind = [f"encoder token {text}" for text in texts], [f"decoder token {text}" for text in texts[:-1]]
    both = [f"{side} position {text}" for side in ("encoder", "decoder") for text in texts]
    assert embeddings == [*own, "decoder start", *behind, *(both if learned else [])]
    first = subject.stack_sizes[0]
    assert errors
    assert all(
        name == f"error of layer {layer} ({'encoder' if layer < first else 'decoder'})"
        for name, layer in errors.items()
    )


@pytest.mark.every_family
@torch.no_grad()
def test_predictions_are_those_of_the_whole_model(subject, variant, shown, folders):
    traced, result = shown[0].traced, shown[1]
    place = 3 if variant in tiny.CAUSAL else 4
    logits = plain_models.run(variant, plain_models.plain(variant, folders[variant]), traced.frame.batch)[1]
    expected = logits[0, place].softmax(-1).topk(6)
    page = result.payload()
    predictions = page["target"]["predictions"]
    assert [p["token"] for p in predictions] == subject.tokens(expected.indices)
    assert [p["probability"] for p in predictions] == pytest.approx(expected.values.tolist(), rel=1e-3)
    assert [t["pos"] for t in page["tokens"] if t["masked"]] == ([] if place == 3 else [4])


def test_without_a_head_nothing_is_promoted(tmp_path, report):
    BertModel(tiny.tiny_model("bert").config).save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    subject = tiny.load_tiny(tmp_path / "bert")
    assert not subject.has_head
    tiny.random_probe(subject).save(tmp_path / "bert" / "probes" / "tiny")
    found = report(subject, "probe:tiny")
    cards = found.result().payload()["features"]
    assert cards
    assert all(card["top_outputs"] == [] for card in cards.values())


@torch.no_grad()
def test_what_is_written_to_an_encoder_reaches_no_head(folders, report):
    subject = tiny.load_tiny(folders["bart"])
    apart = report(subject, architecture="transcoder")
    assert top_outputs(apart, 0, 1) == []
    assert top_outputs(apart, 2, 1) != []
    across = report(subject)  # what a feature of layer 0 writes to layer 2, the decoder's only one
    write = across.traced.frame.dictionary.write_vectors(0, torch.tensor(1))[2]
    promoted = write @ subject.model.lm_head.weight.T
    shown = top_outputs(across, 0, 1)
    best = (promoted - promoted.mean()).topk(5)
    assert [o["token"] for o in shown] == subject.tokens(best.indices)
    assert [o["weight"] for o in shown] == pytest.approx(best.values.tolist(), rel=1e-3)


def test_spellings_that_begin_with_what_is_to_be_predicted(tmp_path, report):
    folder = tiny.save_subject(tiny.tiny_model("gpt2"), tmp_path / "gpt2")
    tokenizer = tiny.tokenizer()  # as GPT-2's own: nothing stands before the first atom
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    tokenizer.save_pretrained(folder)
    text = "OC(C)N"
    others = spellings(parse(text), 12, seed=0)
    first = {s.smiles for s in others if s.original[0] == 1}
    assert first
    subject = tiny.load_tiny(folder)
    found = report(subject, "mask:1", text, replace(QUICK, n_spellings=12)).traced.spellings
    assert found is not None
    assert set(found.texts) == {text, *(s.smiles for s in others)} - first


def test_a_subject_that_names_no_domain_is_refused(folders, report):
    with pytest.raises(SubjectError, match=r"names no domain, .*give --domain"):
        report(tiny.load_subject(folders["bert"]), "mask:1", "CNC")

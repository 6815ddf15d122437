"""Which checkpoints load, with a head or without, and which are refused because they cannot be handled exactly."""

import json
import pickle
import shutil

import pytest
import torch
import transformers
from transformers.utils import logging

import plain_models
import tiny
from isotrace.base.errors import SubjectError
from isotrace.subjects.frozen import FrozenSubject
from isotrace.subjects.probe import pool
from isotrace.subjects.targets import parse_target

HEADLESS = {
    "esm-absolute": "EsmModel",
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "albert": "AlbertModel",
    "modernbert": "ModernBertModel",
    "esmc": "EsmcModel",
    "deberta-v2": "DebertaV2Model",
    "gpt2": "GPT2Model",
    "llama": "LlamaModel",
    "progen": "ProGenModel",
    "bart": "BartModel",
    "t5-relu": "T5Model",
    "molformer": "MolformerModel",
}


def config_changed(folder, copy, **changes):
    shutil.copytree(folder, copy)
    path = copy / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copy


@pytest.mark.parametrize("name", HEADLESS)
def test_a_subject_can_be_sent_to_another_process(name, folders):
    subject = tiny.load_tiny(folders[name])
    batch = subject.tokenize(["CCO"])
    again = pickle.loads(pickle.dumps(subject))
    assert torch.equal(again.run(batch).logits, subject.run(batch).logits)


def test_loading_leaves_what_transformers_says_as_it_was(folders):
    logging.set_verbosity_info()
    try:
        tiny.load_tiny(folders["bert"])
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()


@pytest.mark.parametrize("name", HEADLESS)
def test_a_base_model_is_the_subject_without_its_head(name, folders, tmp_path):
    """Saved as its own class, without the head's weights: other paths, the same hidden states."""
    whole = tiny.load_tiny(folders[name])
    cls = tiny.class_named(HEADLESS[name])
    cls.from_pretrained(folders[name], dtype=torch.float32).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    subject = tiny.load_tiny(tmp_path)
    assert not subject.has_head
    assert whole.has_head
    batch = subject.tokenize(["CCO", "C[nH]1O=c1"])
    names = [f"layers.{layer}.{kind}" for layer in range(tiny.N_LAYERS) for kind in plain_models.KINDS]
    found, expected = (s.run(batch, capture=names) for s in (subject, whole))
    assert found.logits is None
    torch.testing.assert_close(found.final, expected.final)
    for site in names:
        torch.testing.assert_close(found.captured[site], expected.captured[site])
    assert pool(subject, batch, found.final).shape == (2, subject.d_model)
    alone = subject.tokenize(["CCO"])
    frozen = FrozenSubject(subject, alone)
    torch.testing.assert_close(frozen.replay(frozen.sources).final, subject.run(alone).final, rtol=1e-4, atol=1e-5)
    with pytest.raises(SubjectError, match="no language-model head"):
        subject.head(found.final)
    for target in ("mask:1", "diff:1:C:O"):
        with pytest.raises(SubjectError, match=r"no language-model head.*use a probe"):
            parse_target(target, subject, batch)


def test_a_checkpoint_with_another_head_loads_without(folders, tmp_path):
    cls = transformers.BertForSequenceClassification
    cls.from_pretrained(folders["bert"], dtype=torch.float32).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    subject, whole = tiny.load_tiny(tmp_path), tiny.load_tiny(folders["bert"])
    assert not subject.has_head
    batch = subject.tokenize(["CCO"])
    torch.testing.assert_close(subject.run(batch).final, whole.run(batch).final)


@pytest.mark.parametrize("named", [None, ["TheirOwnClass"], ["BertForPreTraining"]])
def test_a_config_that_names_no_known_class_means_the_language_model(folders, tmp_path, named):
    subject = tiny.load_tiny(config_changed(folders["bert"], tmp_path / "copy", architectures=named))
    assert subject.has_head
    batch = subject.tokenize(["CCO"])
    assert torch.equal(subject.run(batch).logits, tiny.load_tiny(folders["bert"]).run(batch).logits)


def test_a_head_that_is_missing_is_not_made_up(folders, tmp_path):
    model = transformers.BertModel.from_pretrained(folders["bert"], dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    copy = config_changed(tmp_path / "base", tmp_path / "copy", architectures=None)
    with pytest.raises(SubjectError, match=r"lacks .* weights, 'cls\..*name its class without one in architectures"):
        tiny.load_tiny(copy)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"chunk_size_feed_forward": 2}, "chunk_size_feed_forward"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key position embeddings"),
        ("esm-absolute", {"position_embedding_type": "relative_key"}, "relative_key position embeddings"),
        ("albert", {"inner_group_num": 2}, "2 layers each"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size"),
        ("deberta-v2", {"legacy": False}, r"legacy.*DebertaV2Model"),
        ("t5-relu", {"decoder_start_token_id": None}, "decoder_start_token_id"),
        ("molformer", {"feature_map_kernel": "gelu"}, "'gelu'.*feature_map_kernel"),
        ("molformer", {"hidden_act": "softsquare"}, "'softsquare'.*hidden_act"),
        ("molformer", {"is_decoder": True}, "is_decoder"),
        ("molformer", {"num_attention_heads": 3}, "num_attention_heads"),
        ("smited", {"n_head": 3}, "n_head"),
    ],
)
def test_what_cannot_be_exact_is_refused(folders, tmp_path, name, changes, reason):
    with pytest.raises(SubjectError, match=f"cannot be handled exactly: .*{reason}"):
        tiny.load_tiny(config_changed(folders[name], tmp_path / "copy", **changes))


def test_an_encoder_alone_of_an_encoder_decoder_lacks_its_decoder(folders, tmp_path):
    transformers.T5EncoderModel.from_pretrained(folders["t5-relu"], dtype=torch.float32).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=r"lacks .* weights, 'decoder\."):
        tiny.load_tiny(tmp_path)


@pytest.mark.parametrize("name", ["albert", "bart"])
def test_layers_made_separate_share_their_parameters(name, folders):
    """ALBERT's layers are modules of their own with one set of weights; so are BART's embeddings."""
    subject = tiny.load_tiny(folders[name])
    if name == "albert":
        modules = [subject.mlp(layer)[1] for layer in range(subject.n_layers)]
        assert len({id(module) for module in modules}) == subject.n_layers
        assert sum(p.numel() for p in subject.model.albert.encoder.parameters()) == sum(
            p.numel() for p in plain_models.plain(name, folders[name]).albert.encoder.parameters()
        )
    else:
        modules = [embedding.module for embedding in subject.embeddings if embedding.kind == "token"]
    assert len({module.weight.data_ptr() for module in modules}) == 1

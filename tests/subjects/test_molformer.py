"""MoLFormer in classes of isotrace's own: the numbers of the original implementation, from a folder laid out as the
published one, without running what lies in it. `tests/data/README.md` says how the reference was recorded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import nn

import tiny
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.molecule import token_map
from isotrace.report.trace.record import Record
from isotrace.subjects.conformance import check
from isotrace.subjects.dispatch import patterns_recorded, patterns_set
from isotrace.subjects.families.native.linear_attention import FeatureMap, LinearAttention, rotated

PUBLISHED = Path(__file__).parents[1] / "data" / "molformer"
REFERENCE = json.loads((PUBLISHED / "reference.json").read_text())


@pytest.fixture(scope="module")
def molformer():
    return tiny.load_tiny(PUBLISHED)


@pytest.fixture
def copy(tmp_path):
    """A folder of it to be changed."""
    return Path(shutil.copytree(PUBLISHED, tmp_path / "copy"))


def test_tokens_hidden_states_and_logits_are_those_of_the_original(molformer):
    batch = molformer.tokenize([row["smiles"] for row in REFERENCE])
    found = molformer.run(batch)
    for i, row in enumerate(REFERENCE):
        assert batch.ids[i][batch.mask[i]].tolist() == row["ids"]
        assert tiny.relative(found.final[i][batch.mask[i]], torch.tensor(row["final"])) < 1e-5
        assert tiny.relative(found.logits[i, 1], torch.tensor(row["logits"])) < 1e-5
    assert max(check(molformer, [row["smiles"] for row in REFERENCE]).values()) < 1e-5


def test_symbols_are_mapped_to_atoms_and_no_character_is_dropped(molformer):
    text = "F/C=C\\Cl"
    batch = molformer.tokenize([text])
    tokens = molformer.tokens(batch.ids[0])
    assert tokens == ["<bos>", "F", "/", "C", "=", "C", "\\", "Cl", "<eos>"]
    units = token_map(text, tokens, batch.offsets[0])
    assert [unit.atoms for unit in units if unit.kind == "atom"] == [(0,), (1,), (2,), (3,)]
    for bad, message in (("C?C", "'?'"), ("CéC", "'é'"), ("C[Zn]", r"'\[Zn\]'"), ("C" * 201, "203 tokens")):
        with pytest.raises(InputError, match=message.replace("?", r"\?")):
            molformer.tokenize([bad])


def test_the_pattern_is_linear_attention_by_its_definition(molformer):
    """Σ φ(q)·φ(k) v / Σ φ(q)·φ(k) with both sums over keys taken first, as the original does; and what is set as the
    pattern is what the values are summed by."""
    batch = molformer.tokenize(["CC(=O)Nc1ccc(O)cc1", "C"])
    layer = next(m for m in molformer.model.modules() if isinstance(m, LinearAttention))
    x = molformer.run(batch, capture=["layers.0.resid_pre"]).captured["layers.0.resid_pre"]
    query, key, value = (
        part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in (layer.query, layer.key, layer.value)
    )
    q, k = (layer.feature_map(rotated(part)) for part in (query, key))
    k = k * batch.mask[:, None, :, None]
    expected = q @ (k.transpose(-1, -2) @ value) / (q @ k.sum(2)[..., None]).clamp(min=1e-6)
    with patterns_recorded(molformer) as patterns:
        found = molformer.run(batch, capture=["layers.0.head_out"]).captured["layers.0.head_out"]
    assert tiny.relative(found, expected.transpose(1, 2).flatten(2)) < 1e-5
    (pattern, *_) = patterns.values()
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    assert float(pattern.min()) >= 0
    assert float(pattern[1, :, :, 3:].abs().max()) == 0, "padding is not attended to"
    uniform = torch.full_like(pattern[:1], 1 / pattern.shape[-1])
    with patterns_set(molformer, lambda module, own, rows: uniform.expand(rows, -1, -1, -1)):
        found = molformer.run(batch, capture=["layers.0.head_out"]).captured["layers.0.head_out"]
    assert tiny.relative(found, value.mean(2, keepdim=True).expand_as(value).transpose(1, 2).flatten(2)) < 1e-5


def test_a_query_without_a_feature_in_common_gives_nothing():
    layer = LinearAttention(4, 1, 3, 1e-6)
    layer.feature_map.weight.zero_()
    found = layer(torch.randn(1, 3, 4), torch.ones(1, 3))
    assert torch.equal(found, torch.zeros(1, 3, 4))


def test_random_features_are_drawn_once_and_kept(molformer, copy):
    """The config of the published folder says deterministic_eval false: its own code would draw others at every run."""
    assert json.loads((copy / "config.json").read_text())["deterministic_eval"] is False
    batch = molformer.tokenize(["CCO"])
    assert torch.equal(molformer.run(batch).final, molformer.run(batch).final)
    state = load_file(copy / "model.safetensors")
    name = "molformer.encoder.layer.1.attention.self.feature_map.weight"
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, copy / "model.safetensors")
    with pytest.raises(SubjectError, match=rf"{name}.* NaN"):
        tiny.load_tiny(copy)
    save_file({key: value for key, value in state.items() if key != name}, copy / "model.safetensors")
    with pytest.raises(SubjectError, match=f"lacks 1 weights, '{name}'"):
        tiny.load_tiny(copy)


def test_features_that_are_drawn_are_orthogonal_in_groups():
    torch.manual_seed(0)
    features = FeatureMap(8, 20)
    features.reset()
    for columns in features.weight.split(8, 1):
        gram = columns.T @ columns
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-5)
        assert float(gram.diagonal().min()) > 0


def test_code_in_the_folder_does_not_run(copy, capsys):
    """Neither that of the config and the model, which `auto_map` names, nor that of the tokenizer."""
    for name in ("configuration", "modeling", "tokenization"):
        (copy / f"{name}_molformer.py").write_text("raise SystemExit('it ran')\n")
    named = {"tokenizer_class": "MolformerTokenizer",
             "auto_map": {"AutoTokenizer": ["tokenization_molformer.MolformerTokenizer", None]}}  # fmt: skip
    (copy / "tokenizer_config.json").write_text(json.dumps(named))
    subject = tiny.load_tiny(copy)
    assert subject.tokens(subject.tokenize(["CCl"]).ids[0]) == ["<bos>", "C", "Cl", "<eos>"]


def test_a_tokenizer_file_is_taken_as_it_is(copy):
    """As the published folder has it: without a length, and with a class that transformers knows."""
    words = json.loads((copy / "vocab.json").read_text())
    (copy / "vocab.json").unlink()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[[^\]]+\]|Br?|Cl?|[NOSPFIbcnosp]|."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    tokenizer.save(str(copy / "tokenizer.json"))
    roles = {"bos_token": "<bos>", "cls_token": "<bos>", "eos_token": "<eos>", "sep_token": "<eos>",
             "mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip
    (copy / "tokenizer_config.json").write_text(json.dumps(roles | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    subject = tiny.load_tiny(copy)
    assert (subject.mask_id, subject.pad_id, subject.max_tokens) == (3, 2, 202)
    assert subject.tokenize(["C[C@@H](N)C(=O)O"]).ids[0].tolist() == REFERENCE[1]["ids"]


@pytest.mark.parametrize("architecture", ["MolformerModel", "MolformerForSequenceClassification"])
def test_other_heads_are_left_out(copy, molformer, architecture):
    """That of a fine-tuned model adds what two layers read to what they give, which `HeadPaths` has no words for."""
    config = json.loads((copy / "config.json").read_text()) | {"architectures": [architecture]}
    (copy / "config.json").write_text(json.dumps(config))
    state = {key: value for key, value in load_file(copy / "model.safetensors").items() if "lm_head" not in key}
    save_file(state | {"classifier.dense.weight": nn.Linear(16, 16).weight.data}, copy / "model.safetensors")
    subject = tiny.load_tiny(copy)
    assert not subject.has_head
    assert subject.task is None
    batch = subject.tokenize(["CCO"])
    assert torch.equal(subject.run(batch).final, molformer.run(batch).final)


def test_a_masked_atom_is_traced_to_atoms(molformer):
    """In its own tokens, from `<bos>` to `<eos>`: the graph is complete and the masses are of the atoms."""
    dictionary = tiny.random_dictionary(molformer)
    config = TraceConfig(max_features=60, n_nodes=8, n_controls=2, n_spellings=0)
    found = trace(molformer, dictionary, "CC(=O)Nc1ccc(O)cc1", "mask:7", config)
    assert (found.tokens[0], found.tokens[-1]) == ("<bos>", "<eos>")
    assert found.graph.completeness_error() < 1e-4
    record = Record(found, "tiny", "random", FeatureTables(), None)
    units = record.result().to_dict()["units"]
    assert "".join(unit["symbol"] for unit in units).upper() == "CCONCCCCOCC"
    assert sum(abs(unit["score"]) for unit in units) > 0
    assert record.result().page()

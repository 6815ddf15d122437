"""Adapters of peft are merged into the model they change, or refused because they change another."""

import json
import shutil
import warnings

import pytest
import torch
import transformers

import tiny
from isotrace.base.errors import SubjectError
from isotrace.subjects.sources import adapter
from isotrace.subjects.targets import parse_target

LABELS = {0: "no", 1: "maybe", 2: "yes"}


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


def adapted(peft, model, modules, folder, **settings):
    """A LoRA adapter of `model` with random weights in `folder`; the model with it merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=modules, **settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().eval()


@pytest.fixture(scope="module")
def classifier(peft, tmp_path_factory):
    """(folder of a LoRA classifier whose head came with it, its base, the merged model)."""
    root = tmp_path_factory.mktemp("adapters")
    base = tiny.save_subject(tiny.tiny_model("roberta"), root / "base")
    start = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    merged = adapted(peft, start, ["query", "value"], root / "adapter", task_type="SEQ_CLS")
    return root / "adapter", base, merged


@torch.no_grad()
def test_a_classifier_is_its_base_with_the_adapter_merged(classifier):
    folder, base, merged = classifier
    subject = tiny.load_tiny(folder)
    batch = subject.tokenize(["CCO", "c1cc[nH]c1C"])
    expected = merged(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    found = subject.task.outputs(subject.task.pooled(batch, subject.run(batch).final))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert subject.task.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert not subject.has_head
    plain = tiny.load_tiny(base)
    assert not torch.allclose(plain.run(batch).final, subject.run(batch).final, atol=1e-2)
    assert subject.files.weights_sha256 != plain.files.weights_sha256
    assert parse_target("class:LABEL_2-LABEL_0", subject, batch).outputs == (-1.0, 0.0, 1.0)


def test_label_names_come_from_a_config_beside_the_adapter(classifier, tmp_path):
    folder, base, _ = classifier
    named = shutil.copytree(folder, tmp_path / "named")
    config = transformers.AutoConfig.from_pretrained(base, id2label=LABELS)
    config.save_pretrained(named)
    assert tiny.load_tiny(named).task.names == tuple(LABELS.values())


@torch.no_grad()
def test_a_language_model_keeps_its_head(peft, tmp_path):
    """Also where the base is named as seen from the adapter, or lies in its folder."""
    base = tiny.save_subject(tiny.tiny_model("gpt2"), tmp_path / "base")
    start = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = adapted(peft, start, ["c_attn"], tmp_path / "lora", task_type="CAUSAL_LM", fan_in_fan_out=True)
    settings = tmp_path / "lora" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "../base"}))
    both = shutil.copytree(base, tmp_path / "both")
    for name in (adapter.CONFIG, adapter.WEIGHTS):
        shutil.copy(tmp_path / "lora" / name, both / name)
    for folder in (tmp_path / "lora", both):
        subject = tiny.load_tiny(folder)
        batch = subject.tokenize(["CCO", "C"])
        expected = merged(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
        found = subject.run(batch).logits
        torch.testing.assert_close(found[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-4)
        assert subject.task is None


def test_an_adapter_of_another_model_is_refused(peft, classifier, tmp_path):
    folder, _, _ = classifier
    wider = tiny.save_subject(tiny.tiny_model("roberta", hidden_size=8), tmp_path / "wider")
    deeper = tiny.save_subject(tiny.tiny_model("roberta", num_hidden_layers=4), tmp_path / "deeper")
    kind = tiny.save_subject(tiny.tiny_model("gpt2"), tmp_path / "kind")
    for place, reason in (
        (wider, r"another model than Roberta.*: '.*' is \(16,\) in it, \(8,\) in the model"),
        (deeper, r"another model than Roberta.*layer\.3.* is missing in it"),
        (kind, r"another model than GPT2"),
        ("nowhere", r"is an adapter of 'nowhere', which is not here"),
        (None, "names no base_model_name_or_path"),
    ):
        copy = tmp_path / f"on-{getattr(place, 'name', place)}"
        shutil.copytree(folder, copy)
        settings = json.loads((copy / adapter.CONFIG).read_text())
        settings["base_model_name_or_path"] = None if place is None else str(place)
        (copy / adapter.CONFIG).write_text(json.dumps(settings))
        with pytest.raises(SubjectError, match=reason) as found:
            tiny.load_tiny(copy)
        assert "\n" not in str(found.value)


def test_without_peft_an_adapter_says_what_to_install(tmp_path, folders, monkeypatch):
    copy = shutil.copytree(folders["bert"], tmp_path / "copy")
    (copy / adapter.CONFIG).write_text('{"peft_type": "LORA"}')
    shutil.copy(copy / "model.safetensors", copy / adapter.WEIGHTS)
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(SubjectError, match=r"peft, which merges it, is not here: pip install 'isotrace\[peft\]'"):
        tiny.load_tiny(copy)

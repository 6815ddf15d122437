"""The page on bringing one's own model: its example runs as it stands, and wrong entries are noticed."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import plain_models
import tiny
from isotrace.base.errors import SubjectError
from isotrace.cli import main
from isotrace.subjects.conformance import check
from isotrace.subjects.families import FAMILIES, register
from isotrace.subjects.frozen import FrozenSubject

PAGE = (Path(__file__).parents[2] / "docs" / "bring-your-own-model.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def main_with(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["isotrace", *arguments])
    main()


@pytest.fixture(autouse=True)
def registry():
    before = {*FAMILIES}
    yield
    sys.modules.pop("my_family", None)
    for name in {*FAMILIES} - before:
        FAMILIES.remove(name)


@pytest.fixture
def distilbert(tmp_path, monkeypatch):
    """A tiny DistilBERT saved as `my-model` in the working directory; its path."""
    config = transformers.DistilBertConfig(
        vocab_size=len(tiny.tokenizer()), dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24,
        pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.DistilBertForMaskedLM(config).eval()
    tiny.perturb(model, 0.25, seed=1)
    monkeypatch.chdir(tmp_path)
    return model, tiny.save_subject(model, tmp_path / "my-model")


def test_the_example_is_short_and_runs(distilbert):
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) < 30
    plain, names = distilbert[0], {}
    exec(EXAMPLE, names)
    assert set(names["deviations"]) == {"padding", "replay", "linearity", "head"}
    assert max(names["deviations"].values()) < 1e-5
    subject = names["subject"]
    batch = subject.tokenize(["C[nH]1O=c1"])
    seen = {}
    for layer, block in enumerate(plain.distilbert.transformer.layer):
        for kind, found, is_input in (
            ("mlp_in", block.ffn.lin1, True),
            ("neuron", block.ffn.lin2, True),
            ("mlp_out", block.ffn.lin2, False),
            ("attn_out", block.attention.out_lin, False),
            ("resid_post", block, False),
        ):
            name = f"layers.{layer}.{kind}"
            plain_models.watch(found, is_input, lambda x, name=name: seen.__setitem__(name, x))
    with torch.no_grad():
        logits = plain(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    run = subject.run(batch, capture=list(seen))
    torch.testing.assert_close(run.logits, logits, rtol=1e-4, atol=1e-4)
    for name, expected in seen.items():
        torch.testing.assert_close(run.captured[name], expected, rtol=1e-4, atol=1e-4)
    frozen = FrozenSubject(subject, batch)
    torch.testing.assert_close(frozen.replay(frozen.sources).final, run.final, rtol=1e-4, atol=1e-5)


def test_another_name_takes_one_line(tmp_path):
    config = tiny.tiny_model("roberta").config.to_dict() | {"model_type": "xlm-roberta"}
    model = transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**config))
    folder = tiny.save_subject(model, tmp_path / "xlm")
    with pytest.raises(SubjectError, match="no family entry for model type 'xlm-roberta'"):
        tiny.load_tiny(folder)
    register(replace(FAMILIES["roberta"], model_type="xlm-roberta"))
    check(tiny.load_tiny(folder), ["CCO", "CC"])


def test_the_entry_works_from_the_command_line(distilbert, tmp_path, monkeypatch, capsys):
    entry, _, _ = EXAMPLE.partition("subject = ")
    (tmp_path / "my_family.py").write_text(entry, encoding="utf-8")
    (tmp_path / "molecules.smi").write_text("CCO\nc1ccccc1C\n" * 8, encoding="utf-8")
    harvest = ("harvest", "my-model", "--data", "molecules.smi", "--tokens", "40", "--shard-tokens", "40")
    harvest += ("--domain", "molecule", "--out", "store")
    with pytest.raises(SystemExit) as refused:
        main_with(monkeypatch, *harvest)
    assert refused.value.code == SubjectError.exit_code
    assert "no family entry for model type 'distilbert'" in capsys.readouterr().err
    try:
        main_with(monkeypatch, "--plugin", "my_family.py", *harvest, "--json")
    except SystemExit as done:
        assert not done.code  # noqa: PT017
    summary = json.loads(capsys.readouterr().out)
    assert summary["tokens"] == 40
    assert summary["hookpoints"] == [f"layers.{layer}.{kind}" for kind in ("mlp_in", "mlp_out") for layer in (0, 1)]
    assert FAMILIES.origin("distilbert") == "my_family"
    stored = load_file(next((tmp_path / "store").rglob("*.safetensors")))
    assert any(tensor.shape[-1] == 16 and bool(tensor.any()) for tensor in stored.values())


@pytest.mark.every_family
def test_every_entry_passes_its_own_check(subject):
    assert max(check(subject, ["C[nH]1O=c1", "CC", "CCO"]).values()) < 1e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norms": ("sa_layer_norm",)}, "linearity deviates"),
        ({"attention": ("attention.dropout",)}, "linearity deviates"),
        ({"attention": ("attention.softmax",)}, "no attribute"),
    ],
)
def test_a_wrong_entry_is_noticed(distilbert, wrong, message):
    exec(EXAMPLE, {})
    family = FAMILIES["distilbert"]
    FAMILIES.remove("distilbert")
    register(replace(family, stacks=(replace(family.stacks[0], **wrong),)))
    with pytest.raises((SubjectError, AttributeError), match=message):
        check(tiny.load_tiny(distilbert[1]), ["C[nH]1O=c1", "CC"])

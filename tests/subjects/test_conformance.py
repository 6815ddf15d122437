"""What every family must do: the same numbers as transformers, captured and edited where it says."""
# ruff: noqa: F722  (shape annotations are not Python expressions)

import json
import shutil

import pytest
import torch
from beartype import beartype
from jaxtyping import Bool, Float, Int64, jaxtyped
from safetensors.torch import load_file, save_file
from torch import Tensor

import plain_models
import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.interventions import Add, Apply, Intervention, MLPs, Plan, Select
from isotrace.subjects.families import FAMILIES, family_of

pytestmark = pytest.mark.every_family
SEQUENCES = ["C[nH]1O=c1", "CC", "c1cc[nH]c1Cl"]
HOOKS = [f"layers.{layer}.mlp_{side}" for layer in range(tiny.N_LAYERS) for side in ("in", "out")]


def test_every_family_is_covered():
    assert {tiny.tiny_model(variant).config.model_type for variant in tiny.VARIANTS} == set(FAMILIES)


@torch.no_grad()
def test_hookpoints_final_state_and_logits_are_those_of_transformers(subject, folders, variant):
    """Hooks on transformers' own modules, found by hand, against what is captured by name.

    ALBERT as transformers has it runs one block over and over: its hooks see every layer in turn.
    """
    model = plain_models.plain(variant, folders[variant])
    batch = subject.tokenize(SEQUENCES)
    shared = variant == "albert"
    seen = {kind: [] for kind in plain_models.KINDS}
    handles = [
        plain_models.watch(*plain_models.module(variant, model, layer, kind), seen[kind].append)
        for kind in plain_models.KINDS
        for layer in range(1 if shared else tiny.N_LAYERS)
    ]
    final, logits = plain_models.run(variant, model, batch)
    for handle in handles:
        handle.remove()
    names = [f"layers.{layer}.{kind}" for layer in range(tiny.N_LAYERS) for kind in plain_models.KINDS]
    found = subject.run(batch, capture=names)
    assert set(found.captured) == set(names)
    for kind, values in seen.items():
        assert len(values) == tiny.N_LAYERS
        for layer, expected in enumerate(values):
            close(found.captured[f"layers.{layer}.{kind}"][batch.mask], expected[batch.mask])
    close(found.final[batch.mask], final[batch.mask])
    close(found.logits[batch.mask], logits[batch.mask])
    torch.testing.assert_close(subject.head(found.final), found.logits)


def close(found, expected):
    assert found.shape == expected.shape
    assert tiny.relative(found, expected) < 1e-5


def test_padding_and_company_change_nothing(subject):
    batch = subject.tokenize(SEQUENCES)
    together = subject.run(batch, capture=HOOKS)
    for row, text in enumerate(SEQUENCES):
        alone = subject.run(subject.tokenize([text]), capture=HOOKS)
        length = alone.final.shape[1]
        assert int(batch.mask[row].sum()) == length
        pairs = [(together.final, alone.final), (together.logits, alone.logits)]
        pairs += [(together.captured[name], alone.captured[name]) for name in HOOKS]
        for padded, single in pairs:
            torch.testing.assert_close(padded[row, :length], single[0], rtol=1e-4, atol=1e-4)


def test_edits_intervene(subject):
    batch = subject.tokenize(SEQUENCES[:1])
    clean = subject.run(batch, capture=HOOKS)
    seen = []

    def edit(layer, values):
        seen.append((layer, values[:, :, 0]))
        return values + 1 if layer == 1 else values

    edited = subject.run(batch, capture=HOOKS, plan=Plan((Intervention(MLPs(), Apply(edit)),)))
    assert [layer for layer, _ in seen] == [0, 1, 2]
    torch.testing.assert_close(seen[1][1], clean.captured["layers.1.mlp_out"])
    torch.testing.assert_close(edited.captured["layers.1.mlp_out"], clean.captured["layers.1.mlp_out"] + 1)
    torch.testing.assert_close(edited.captured["layers.1.mlp_in"], clean.captured["layers.1.mlp_in"])
    noise = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(0))
    moved = subject.run(batch, capture=HOOKS, plan=Plan((Intervention(MLPs(), Add(noise), Select((1,))),)))
    assert float((moved.captured["layers.2.mlp_in"] - clean.captured["layers.2.mlp_in"]).abs().max()) > 1e-3
    assert float((moved.logits - clean.logits).abs().max()) > 1e-3
    unchanged = subject.run(batch, plan=Plan((Intervention(MLPs(), Add(0.0)),)))
    assert torch.equal(unchanged.logits, clean.logits)
    assert torch.equal(subject.run(batch).logits, clean.logits), "no hook is left behind"


def test_unknown_hookpoints(subject):
    batch = subject.tokenize(["CC"])
    for name in ("layers.3.mlp_in", "layers.0.attn_pattern", "nonsense"):
        with pytest.raises(SubjectError, match=f"no hookpoint '{name}'"):
            subject.run(batch, capture=["layers.0.mlp_in", name])


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("  ", "empty"), ("CXC", "'X'"), ("CéC", "'é'")])
def test_unusable_input(subject, text, message):
    with pytest.raises(InputError, match=message):
        subject.tokenize(["CC", text])


def test_the_longest_input_fits_and_one_more_token_does_not(subject, variant):
    """Learned positions of ESM and RoBERTa start behind the padding index, so two of them are lost. T5 has no limit
    of its own; the tokenizer's is 64."""
    lost = 2 * (variant in ("esm-absolute", "roberta"))
    assert subject.max_tokens == (64 if variant.startswith("t5") else tiny.MAX_POSITIONS - lost)
    batch = subject.tokenize(["C" * (subject.max_tokens - 2)])
    assert batch.ids.shape == (1, subject.max_tokens)
    assert bool(torch.isfinite(subject.run(batch).logits).all())
    with pytest.raises(InputError, match=f"{subject.max_tokens + 1} tokens, but .* takes {subject.max_tokens}"):
        subject.tokenize(["C" * (subject.max_tokens - 1)])


def test_tokens(subject):
    batch = subject.tokenize(SEQUENCES)
    assert subject.tokens(batch.ids[0][batch.mask[0]]) == ["<cls>", "C", "[nH]", "1", "O", "=", "c", "1", "<eos>"]
    assert [SEQUENCES[0][a:b] for a, b in batch.offsets[0][1:-1]] == ["C", "[nH]", "1", "O", "=", "c", "1"]
    assert subject.token_id("O") == int(batch.ids[0, 4])
    assert batch.ids[1][~batch.mask[1]].tolist() == [subject.pad_id] * int((~batch.mask[1]).sum())
    with pytest.raises(InputError, match="'Xx' is no token"):
        subject.token_id("Xx")


def test_norms_are_all_the_layernorms_on_the_way(subject, variant):
    """Every norm outside the head, so that the frozen subject misses none. DeBERTa's relative embeddings have one
    too, and ESM-C has two on queries and keys, but only attention scores see them."""
    found = {name for name, m in subject.model.named_modules() if type(m).__name__.endswith("Norm")}
    aside = ("lm_head.", "cls.", "predictions.", "head.", "deberta.encoder.LayerNorm",
             "smi_ted.encoder.lang_model.", "smi_ted.decoder.")  # fmt: skip
    found = {name for name in found if not name.startswith(aside) and not name.endswith((".q_norm", ".k_norm"))}
    assert set(subject.norms) == found
    assert len(subject.attentions) == tiny.N_LAYERS + sum(subject.stack_sizes[1:])


def test_embeddings_are_of_tokens_and_of_learned_positions(subject, variant):
    learned = variant in ("esm-absolute", "bert", "roberta", "albert", "gpt2", "bart")
    twice = variant in ("bart", "t5-relu", "t5-gated")
    found = [(e.kind, e.shift) for e in subject.embeddings]
    sides = [0, 1] if twice else [0]
    assert found == [("token", side) for side in sides] + [("position", 0) for _ in sides if learned]
    assert len({id(e.module) for e in subject.embeddings}) == len(found), "no module is called twice"


def test_shapes(subject):
    batch = subject.tokenize(SEQUENCES)
    output = subject.run(batch, capture=HOOKS)

    @jaxtyped(typechecker=beartype)
    def check(
        ids: Int64[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        final: Float[Tensor, "batch tokens d"],
        logits: Float[Tensor, "batch tokens vocabulary"],
        mlp_in: Float[Tensor, "batch tokens d"],
        mlp_out: Float[Tensor, "batch tokens d"],
    ) -> None:
        pass

    check(batch.ids, batch.mask, output.final, output.logits, *(output.captured[n] for n in HOOKS[:2]))
    assert subject.run(batch, logits=False).logits is None


def test_an_architecture_without_an_entry():
    with pytest.raises(SubjectError, match=r"'xlnet': give one of albert, bart, .*see docs/bring-your-own-model.md"):
        family_of("xlnet")


def damaged(folder, copy, change):
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_non_finite_and_missing_weights(folders, tmp_path):
    name = "esm.encoder.layer.1.output.dense.weight"
    with pytest.raises(SubjectError, match=rf"{name}.*NaN"):
        tiny.load_tiny(damaged(folders["esm-rotary"], tmp_path / "nan", lambda s: s[name].fill_(float("nan"))))
    with pytest.raises(SubjectError, match=rf"lacks 1 weights, '{name}'"):
        tiny.load_tiny(damaged(folders["esm-rotary"], tmp_path / "missing", lambda s: s.pop(name)))


def test_truncated_weights(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["bert"], copy)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SubjectError, match="cannot load"):
        tiny.load_tiny(copy)


def test_a_foreign_model_type(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["bert"], copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "electra"}))
    with pytest.raises(SubjectError, match="no family entry for model type 'electra'"):
        tiny.load_tiny(copy)

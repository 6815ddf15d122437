"""What each family predicts and from where: masked tokens, next tokens, tokens rebuilt by an encoder–decoder."""

import copy

import pytest
import torch

import plain_models
import tiny
from isotrace.activations.harvest import Corpus, activations, mask_some, masked_batches
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune, total_effects
from isotrace.attribution.units import unit_scores
from isotrace.base.errors import InputError, SubjectError
from isotrace.domains.domain import domain_of
from isotrace.evaluation.controls import neurons
from isotrace.subjects.targets import parse_target

CAUSAL = tiny.CAUSAL
pytestmark = pytest.mark.every_family


def test_the_objective_and_the_mask_token(subject, variant):
    objective = {"bart": "denoising"}.get(variant, "causal" if variant in CAUSAL else "masked")
    assert subject.objective == ("denoising" if variant.startswith("t5") else objective)
    assert (subject.mask_id is None) == (variant in CAUSAL)


@torch.no_grad()
def test_a_prediction_does_not_see_its_token(subject, variant, folders):
    """The logits that `mask:` reads are those of plain transformers, and do not change with the token itself."""
    batch = subject.tokenize([tiny.SMILES])
    values = []
    for token in ("O", "N"):
        ids = batch.ids.clone()
        ids[0, 4] = subject.token_id(token)
        written = batch.with_ids(ids)
        target = parse_target("mask:4:C", subject, written)
        prepared = target.prepare(subject, written)
        values.append(float(target.value(subject, prepared, subject.run(prepared).final)[0]))
        logits = plain_models.run(variant, plain_models.plain(variant, folders[variant]), prepared)[1]
        row = logits[0, 3 if variant in CAUSAL else 4]
        assert values[-1] == pytest.approx(float(row[subject.token_id("C")] - row.mean()), rel=1e-3, abs=1e-4)
    assert values[0] == values[1]
    where = "for position 4, read before it" if variant in CAUSAL else "at masked position 4"
    assert where in target.description


def test_positions_that_cannot_be_predicted(subject, variant):
    batch = subject.tokenize(["CCO"])
    last = 4 if variant in CAUSAL else 3  # a causal subject also predicts what is behind the text
    with pytest.raises(InputError, match=rf"'9' is out of range.*positions 1 to {last}"):
        parse_target("mask:9", subject, batch)
    for text in ("mask:--1", "mask:²", "mask:"):
        with pytest.raises(InputError, match=r"out of range|is no target"):
            parse_target(text, subject, batch)
    if variant not in CAUSAL:
        with pytest.raises(InputError, match=r"position 4 is <eos>.*positions 1 to 3"):
            parse_target("mask:4", subject, batch)
    else:
        assert parse_target("mask:4:C", subject, batch).position == 4
        with pytest.raises(InputError, match="nothing stands before position 0"):
            subject.prepare_prediction(batch, 0)


def test_without_a_mask_token_nothing_is_masked(subject, variant):
    batch, generator = subject.tokenize(["CCO"]), torch.Generator().manual_seed(0)
    bare = copy.copy(subject)
    bare.mask_id = None
    same, chosen = mask_some(bare, batch, 0.0, generator)
    assert torch.equal(same.ids, batch.ids)
    assert not bool(chosen.any())
    with pytest.raises(SubjectError, match="leave the masking rate out"):
        mask_some(bare, batch, 0.5, generator)
    with pytest.raises(SubjectError, match="leave the masking rate out"):
        next(masked_batches(bare, Corpus.of(bare, ["CCO"]), 8, 0.15, 0))
    if variant not in CAUSAL:
        with pytest.raises(SubjectError, match="has no mask token"):
            parse_target("mask:1", bare, batch)


def test_a_tokenizer_without_padding_or_unknown_token(subject):
    """As GPT-2's: rows are filled up with the end token, which the mask hides, and no token is unknown."""
    bare = tiny.load_tiny(subject.files.folder)
    tokenizer = bare.tokenizer
    tokenizer.pad_token = tokenizer.unk_token = None
    bare = type(bare)(bare.model, tokenizer, bare.files)
    assert bare.pad_id == tokenizer.eos_token_id
    batch = bare.tokenize(["C[nH]1O=c1", "CC"])
    expected, found = subject.run(subject.tokenize(["CC"])), bare.run(batch)
    torch.testing.assert_close(found.final[1, :4], expected.final[0], rtol=1e-4, atol=1e-4)


def test_harvested_is_what_is_captured(subject):
    """With the fast kernels where they apply, padded and whole."""
    for sequences in (["CCO", "CCN"], ["CCO", "c1cc[nH]c1C", "C"]):
        batch = subject.tokenize(sequences)
        # those are not as wide as the stream in every family
        kinds = [kind for kind in plain_models.KINDS if kind not in ("neuron", "head_out")]
        names = [f"layers.{layer}.{kind}" for layer in range(subject.n_layers) for kind in kinds]
        apart = ["layers.2.neuron", "layers.2.head_out"]
        captured = subject.run(batch, capture=[*names, *apart]).captured
        for name, found in zip(names, activations(subject, batch, names), strict=True):
            assert tiny.relative(found, captured[name][batch.mask]) < 1e-5, name
        for name in apart:
            found = activations(subject, batch, [name])[0]
            assert tiny.relative(found, captured[name][batch.mask]) < 1e-5, name


def test_neurons_write_the_mlp_output(subject64):
    """As a control with every neuron, exactly; whether the last map is a Linear or a Conv1D, with bias or without."""
    batch = subject64.tokenize(["CCO", "c1cc[nH]c1C"])
    everything = neurons(subject64, (0, 1, 2), k=24)
    for layer in range(3):
        names = [f"layers.{layer}.neuron", f"layers.{layer}.mlp_out"]
        x, y = (subject64.run(batch, capture=[name]).captured[name] for name in names)
        rows, bias = subject64.neuron_writes(layer)
        assert rows.shape == (24, subject64.d_model)
        assert tiny.relative(x @ rows + (0 if bias is None else bias), y) < 1e-12
        active = {layer: everything.encode(layer, x).dense(48)}
        assert tiny.relative(everything.decode(layer, active, x), y) < 1e-12


def test_mass_goes_to_the_tokens_that_embeddings_stand_for(subject64):
    """The decoder of an encoder–decoder reads its input one place to the right: mass and effects follow the token."""
    molecule = tiny.MOLECULES[1]
    batch, target = tiny.prepared("mask", subject64, molecule)
    graph = build_graph(frame(subject64, tiny.random_dictionary(subject64), batch, target), max_features=1_000)
    pruned, effects = prune(graph, 0.8, 0.98), total_effects(graph)
    tokens = subject64.tokens(subject64.tokenize([molecule]).ids[0])
    elements = domain_of("molecule").read(molecule, tokens, batch.offsets[0]).elements
    found = unit_scores(graph, pruned, effects, elements)
    expected = torch.zeros(graph.n_tokens)
    for group, embedding in enumerate(subject64.embeddings):
        for place in range(graph.n_tokens):
            node = graph.tokens.start + group * graph.n_tokens + place
            expected[max(0, place - embedding.shift)] += effects[node]
    torch.testing.assert_close(found.signed, expected)
    assert float(found.positions.sum()) == pytest.approx(1)
    assert sum(e.shift for e in subject64.embeddings) == len(subject64.stack_sizes) - 1

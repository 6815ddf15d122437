"""When a subject commits itself is known where blocks write nothing, and detection finds what is planted."""

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from isotrace.stats.bootstrap import group_weights
from isotrace.studies.difficulty.commitment import (
    Committed,
    coherence,
    committed,
    detector_rows,
    from_which_on,
    level_rows,
    margin,
    restored,
    shuffled_context,
)
from isotrace.subjects.heads.likelihoods import masked_copies

TEXT = "CC(=O)NCCO"


def subject_of(folder, busy: int):
    """Four layers, of which those behind the first `busy` write nothing."""
    model: Any = tiny.tiny_model("esm-rotary", num_hidden_layers=4)
    for block in model.esm.encoder.layer[busy:]:
        for linear in (block.attention.output.dense, block.output.dense):
            linear.weight.data.zero_()
            linear.bias.data.zero_()
    return tiny.load_tiny(tiny.save_subject(model, folder))


def test_the_layer_from_which_on():
    assert from_which_on(np.array([True, False, True, True])) == 2
    assert from_which_on(np.array([True, True])) == 0
    assert from_which_on(np.array([True, False])) == 2
    assert margin(torch.tensor([[1.0, 5.0, 3.0], [4.0, 1.0, 2.0]]), 1).tolist() == [2, -3]


@pytest.mark.parametrize("busy", [0, 1, 3])
def test_nothing_changes_behind_the_last_layer_that_writes(tmp_path, busy):
    subject = subject_of(tmp_path, busy)
    batch = subject.tokenize([TEXT])
    found = committed(subject, None, batch, 4, np.random.default_rng(0))
    assert found.commitment <= busy
    assert np.isnan(found.coherence)
    masked = masked_copies(subject, batch, [[4]])
    other = shuffled_context(subject, masked, 4, np.random.default_rng(0))
    answer = int(subject.head(subject.run(masked, logits=False).final)[0, 4].argmax())
    shares = restored(subject, masked, other, 4, answer)
    if busy == 0:
        assert shares is None  # no context is read
        assert np.isnan(found.causal)
    elif shares is not None:
        assert shares[0] == pytest.approx(0, abs=1e-4)  # a mask is a mask
        assert shares[busy:] == pytest.approx(1, abs=1e-4)
        assert found.causal <= busy


def test_the_context_is_shuffled_and_nothing_else(tmp_path):
    subject = subject_of(tmp_path, 1)
    masked = masked_copies(subject, subject.tokenize([TEXT]), [[4]])
    other = shuffled_context(subject, masked, 4, np.random.default_rng(0))
    special = subject.special(masked.ids[0])
    assert (other.ids[0] == masked.ids[0])[special].all()
    assert other.ids[0, 4] == subject.mask_id
    assert sorted(other.ids[0].tolist()) == sorted(masked.ids[0].tolist())
    assert (other.ids != masked.ids).any()


def test_without_attention_no_context_is_coherent(tmp_path):
    """The only influence is that of the masked token's own embedding; with attention some comes from afar."""
    shares = []
    for cut in (True, False):
        model: Any = tiny.tiny_model("esm-rotary")
        if cut:
            for block in model.esm.encoder.layer:
                block.attention.output.dense.weight.data.zero_()
        subject = tiny.load_tiny(tiny.save_subject(model, tmp_path / str(cut)))
        dictionary = tiny.random_dictionary(subject)
        shares.append(coherence(subject, dictionary, subject.tokenize([TEXT]), 4, 6, 7))
    assert shares[0] == 0
    assert 0.05 < shares[1] < 1


def planted(informs: bool) -> tuple[list[Committed], np.ndarray]:
    """Wrong answers are late, or commitment has nothing to do with them; entropy never has."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        right = bool(rng.random() < 0.7)
        late = 0.0 if right or not informs else 1.5
        parts = rng.normal(size=3)
        found.append(Committed(right, rng.normal(), parts[0] + late, parts[1], parts[2]))
    return found, np.arange(400) // 5


def test_errors_that_are_late_are_found_and_others_are_not():
    for informs in (True, False):
        found, molecule = planted(informs)
        weights = group_weights([str(m) for m in molecule], 200, 0)
        row = {r["detector"]: r for r in detector_rows(found, molecule, weights)}
        level = {r["measure"]: r for r in level_rows(found, weights)}
        assert (row["commitment"]["auroc_ci"][0] > 0.7) == informs
        assert (row["all, fitted"]["gain_ci"][0] > 0.1) == informs
        assert row["coherence"]["auroc_ci"][0] < 0.5 < row["coherence"]["auroc_ci"][1]
        assert row["all, fitted, others exchanged"]["gain_ci"][0] < 0.1
        assert (level["commitment"]["wrong_less_right_ci"][0] > 1) == informs


def test_tokens_without_a_causal_layer_are_left_out():
    found, molecule = planted(True)
    found = [*found[:395], *[Committed(True, 0.0, 1.0, float("nan"), 0.0)] * 5]
    weights = group_weights([str(m) for m in molecule], 20, 0)
    assert {r["tokens"] for r in detector_rows(found, molecule, weights)} == {395}
    few = [Committed(True, 0.0, 1.0, 1.0, 0.0)] * 400
    assert "fewer than 10" in detector_rows(few, molecule, weights)[0]["reason"]

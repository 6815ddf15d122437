"""A causal subject is asked about the beginning of a molecule, and about the token behind the end."""

import pytest
import torch

import plain_models
import tiny
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.base.errors import InputError
from isotrace.base.result import Result
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.report.trace.record import Record

PROMPT = "CC(=O)Oc1ccc"
CONFIG = TraceConfig(n_controls=3, n_nodes=4, n_spellings=3)


@pytest.fixture(scope="module")
def causal(causals):
    subject = causals["gpt2"]
    return subject, tiny.random_dictionary(subject)


def logits_behind(folders, subject, text):
    """Of plain transformers, read at the last token of the text, less their mean."""
    ids = subject.tokenize([text]).ids[:, :-1]  # without the end token
    with torch.no_grad():
        found = plain_models.plain("gpt2", folders["gpt2"])(input_ids=ids).logits[0, -1]
    return found - found.mean()


@pytest.mark.parametrize("text", [PROMPT, "CCO"])
def test_the_next_token_behind_the_end_is_a_target(causal, folders, text):
    subject, dictionary = causal
    expected = logits_behind(folders, subject, text)
    n = len(subject.tokenize([text]).ids[0]) - 1
    for target, token in ((f"mask:{n}", None), (f"mask:{n}:c", "c"), (f"diff:{n}:c:O", ("c", "O"))):
        found = trace(subject, dictionary, text, target, CONFIG)
        if isinstance(token, tuple):
            value = expected[subject.token_id("c")] - expected[subject.token_id("O")]
        else:
            value = expected.max() if token is None else expected[subject.token_id(token)]
        assert found.value == pytest.approx(float(value), abs=1e-4)
        assert found.target.positive == (expected.argmax() if token is None else subject.token_id("c"))
        assert "nothing stands there yet" in found.target.description
        assert len(found.tokens) == n
        assert found.spellings is None
        assert found.graph.completeness_error() < 1e-4
    with pytest.raises(InputError, match=rf"out of range: this input has positions 1 to {n}\."):
        trace(subject, dictionary, text, f"mask:{n + 1}", CONFIG)


def test_a_beginning_is_traced_drawn_and_said_to_be_one(causal, tmp_path):
    subject, dictionary = causal
    found = trace(subject, dictionary, PROMPT, "mask:6", CONFIG)
    assert [written for written in found.reading.elements if written] == [(i,) for i in range(8)]
    assert (found.reading.units[9].kind, found.reading.units[9].partner) == ("ring", None)
    result = Record(found, "gpt2", "random", FeatureTables(), None).result()
    said = [text for text in result.summary["warnings"] if text.startswith("Read as the beginning of a molecule")]
    assert len(said) == 1
    assert "ring closure 1" in said[0]
    assert [unit["symbol"] for unit in result.units] == ["C", "C", "O", "O", "C", "C", "C", "C"]
    result.save(tmp_path / "run")
    assert Result.load(tmp_path / "run") == result
    whole = trace(subject, dictionary, "CC(=O)Oc1ccccc1", "mask:6", CONFIG)
    assert whole.begun is None
    assert whole.value == pytest.approx(found.value, abs=1e-4)  # what stands behind is not read


def test_a_masked_subject_says_that_it_takes_whole_molecules(rotary):
    dictionary = tiny.random_dictionary(rotary)
    with pytest.raises(InputError, match=r"never closed; only a causal subject takes the beginning of a molecule"):
        trace(rotary, dictionary, PROMPT, "mask:6", CONFIG)
    with pytest.raises(InputError, match="what follows the end only a causal subject predicts"):
        trace(rotary, dictionary, "CCO", "mask:5", CONFIG)


@pytest.mark.parametrize("text", ["C(C)(C)(C)(C)C", "CC)C", "C?"])
def test_what_no_molecule_begins_with_is_refused(causal, text):
    subject, dictionary = causal
    with pytest.raises(InputError) as refused:
        trace(subject, dictionary, text, "mask:1", CONFIG)
    assert "beginning" not in str(refused.value)

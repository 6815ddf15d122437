"""ANNalog, an encoder–decoder that writes another sequence than it reads, as its own code computes it.

tests/data/families/annalog.safetensors is what that code gave for weights by a formula; the published weights are
compared in `test_pypi.py`, where the wheel can be had.
"""

import io
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.subjects.conformance import check
from isotrace.subjects.sources import annalog, conversion
from isotrace.subjects.sources.published import find
from isotrace.subjects.subject import load_subject
from subjects.test_reference_code import Recorded


@pytest.fixture(scope="module")
def recorded():
    return Recorded("annalog")


@pytest.fixture(scope="module")
def subject(recorded, tmp_path_factory):
    entry, folder, state = find("annalog"), tmp_path_factory.mktemp("annalog"), io.BytesIO()
    torch.save(recorded.weights, state)
    words = recorded.about["words"]
    with zipfile.ZipFile(folder / "wheel.whl", "w") as archive:
        archive.writestr(entry.checkpoint, state.getvalue())
        archive.writestr(entry.vocabulary, pickle.dumps({"itos": words, "stoi": {w: i for i, w in enumerate(words)}}))
    (folder / "own").mkdir()
    conversion.convert(entry, folder / "wheel.whl", folder / "own")
    return load_subject(folder / "own")


@torch.no_grad()
def test_it_computes_what_the_package_computes(subject, recorded):
    about, tensors = recorded.about, recorded.tensors
    pair = subject.tokenize(about["sequences"], about["sources"])
    assert torch.equal(pair.ids, tensors["ids"])
    assert torch.equal(pair.source.ids, tensors["sources"])
    names = [f"layers.{layer}.resid_post" for layer in range(subject.n_layers)]
    found = subject.run(pair, capture=names)
    states = [found.captured[name] for name in names]
    for ours, theirs, mask in (
        *((one, two, pair.source.mask) for one, two in zip(states[:2], tensors["encoder"], strict=True)),
        *((one, two, pair.mask) for one, two in zip(states[2:], tensors["blocks"], strict=True)),
        (found.final, tensors["final"], pair.mask),
        (found.logits, tensors["logits"], pair.mask),
    ):
        assert tiny.relative(ours[mask], theirs[mask]) < 1e-5


def test_it_is_a_translating_subject(subject, recorded):
    assert (subject.objective, subject.mask_id, subject.predicts_next) == ("translating", None, True)
    assert (subject.files.domain, subject.max_tokens, subject.n_layers) == ("molecule", 20, 4)
    assert not any("layernorm_embedding" in name for name in subject.norms)
    tables = [one.module.weight for one in subject.embeddings if one.kind == "token"]
    assert not torch.equal(*tables)
    assert [one.shift for one in subject.embeddings if one.kind == "token"] == [0, 0]
    with pytest.raises(InputError, match="a translating subject predicts positions from 1 on"):
        subject.reading_position(0)
    with pytest.raises(InputError, match="'B'"):
        subject.tokenize(["CB"])
    assert max(check(subject, ["CCO", "CN"]).values()) < 1e-4


@torch.no_grad()
def test_what_the_encoder_reads_decides_what_is_written(subject):
    one, two = (subject.run(subject.tokenize(["CCO"], [source])).logits for source in ("CCO", "c1ccccc1"))
    assert float((one - two).abs().max()) > 1e-3
    torch.testing.assert_close(subject.run(subject.tokenize(["CCO"])).logits, one)
    many = subject.run(subject.tokenize(["CCO", "CCN"], ["CCO"])).logits
    torch.testing.assert_close(many[:1], one)
    drawn = subject.generate(subject.tokenize(["CCO", "CC"]), max_new=5, seed=1)
    assert all(len(row) <= 5 for row in drawn.ids)


def test_a_pickle_of_more_than_words_is_not_run():
    with pytest.raises(pickle.UnpicklingError, match="is no plain data"):
        annalog.vocabulary(pickle.dumps({"itos": [replace]}))
    with pytest.raises(SubjectError, match="it is another"):
        annalog.vocabulary(pickle.dumps({"itos": ["a", "b"]}))

"""Source strings, and the record that notices damage."""

import hashlib
import json
import shutil

import pytest

from isotrace.base.errors import SubjectError
from isotrace.subjects.sources.source import resolve, write_record


@pytest.fixture
def copy(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path / "bert")
    return tmp_path / "bert"


def test_a_folder_is_a_source(copy):
    files = resolve(str(copy), "molecule")
    assert (files.source, files.folder, files.domain) == (str(copy), copy, "molecule")
    assert files.weights_sha256 == hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    assert resolve(str(copy), None).domain is None


def test_the_record_gives_the_domain_and_the_argument_wins(copy):
    write_record(copy, "molecule")
    assert resolve(str(copy), None).domain == "molecule"
    assert resolve(str(copy), "reaction").domain == "reaction"


def test_a_flipped_bit_is_noticed(copy):
    write_record(copy, "molecule")
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(SubjectError, match="differ from their recorded hash"):
        resolve(str(copy), None)


@pytest.mark.parametrize(
    "change", [{"format": "other"}, {"format_version": 2}, {"extra": 1}], ids=["format", "version", "unknown key"]
)
def test_a_foreign_record(copy, change):
    write_record(copy, "molecule")
    record = json.loads((copy / "subject.json").read_text()) | change
    (copy / "subject.json").write_text(json.dumps(record))
    with pytest.raises(SubjectError, match="not an isotrace-subject version 1"):
        resolve(str(copy), None)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": "isotrace-subject"}'])
def test_a_damaged_record(copy, content):
    (copy / "subject.json").write_text(content)
    with pytest.raises(SubjectError, match="not an isotrace-subject version 1"):
        resolve(str(copy), None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bundled:nothing", "no bundled subject 'nothing': there is bundled:molm"),
        ("pypi:rxnfp", "3 models in 'pypi:rxnfp': give one of pypi:rxnfp/bert_pretrained"),
        ("no/such/folder", "is no subject"),
        ("", "is no subject"),
    ],
)
def test_nothing_there(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SubjectError, match=message):
        resolve(source, None)


def test_a_folder_without_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(SubjectError, match=r"has no weights .*safetensors or pytorch_model"):
        resolve(str(copy), None)


def test_weights_in_several_files_are_hashed_in_order(copy):
    (copy / "a.safetensors").write_bytes(b"first")
    (copy / "z.safetensors").write_bytes(b"last")
    whole = b"first" + (copy / "model.safetensors").read_bytes() + b"last"
    assert resolve(str(copy), None).weights_sha256 == hashlib.sha256(whole).hexdigest()

"""The cache of `pypi:` subjects: nothing half written, nothing executed, and errors that say what to do. No network."""

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch

import tiny
from isotrace.base.errors import SubjectError
from isotrace.subjects.sources import conversion, published, pypi
from isotrace.subjects.sources.published import find
from isotrace.subjects.sources.source import resolve
from isotrace.subjects.subject import load_subject


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch):
    """A published subject whose wheel, a tiny BERT's, lies in an empty cache: no network is needed."""
    monkeypatch.setenv("ISOTRACE_CACHE", str(tmp_path / "cache"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "C", "O", "=", "(", ")", ">>", "[nH]"]
    network = tiny.tiny_model("bert", vocab_size=len(words), pad_token_id=0).eval()
    state = io.BytesIO()
    torch.save(network.state_dict(), state, _use_new_zipfile_serialization=False)
    entry = find("rxnfp/bert_pretrained")
    wheel = tmp_path / "cache" / "wheels" / entry.wheel.file
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(entry.checkpoint, state.getvalue())
        archive.writestr(entry.config or "", json.dumps(network.config.to_dict()))
        archive.writestr(entry.vocabulary, "\n".join(words) + "\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    entry = replace(entry, wheel=replace(entry.wheel, sha256=digest))
    monkeypatch.setattr(published, "SUBJECTS", (entry,))
    return entry, network


def leftovers(entry) -> list[str]:
    return [path.name for path in pypi.converted_folder(entry).parent.glob(".*")]


def test_what_is_converted_computes_the_same(tiny_wheel):
    entry, network = tiny_wheel
    assert not pypi.is_cached(entry)
    subject = load_subject("pypi:rxnfp")
    assert pypi.is_cached(entry)
    assert leftovers(entry) == []
    batch = subject.tokenize(["C(=O)O>>C[nH]"])
    assert subject.tokens(batch.ids[0]) == ["[CLS]", "C", "(", "=", "O", ")", "O", ">>", "C", "[nH]", "[SEP]"]
    expected = network(batch.ids).logits
    torch.testing.assert_close(subject.run(batch).logits, expected)


def test_the_cache_serves_without_the_wheel(tiny_wheel):
    entry, _ = tiny_wheel
    first = resolve("pypi:rxnfp/bert_pretrained", None)
    shutil.rmtree(pypi.cache_folder() / "wheels")
    assert resolve("pypi:rxnfp/bert_pretrained", None) == first
    assert first.domain == "reaction"
    weights = pypi.converted_folder(entry) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(SubjectError, match=r"damaged, remove \S+bert_pretrained and try again"):
        resolve("pypi:rxnfp/bert_pretrained", None)


def test_an_interrupted_conversion_leaves_nothing(tiny_wheel, monkeypatch):
    (entry, _), convert = tiny_wheel, conversion.convert

    def interrupted(subject, wheel, folder):
        convert(subject, wheel, folder)
        (folder / "config.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(conversion, "convert", interrupted)
        pypi.obtain(entry.name)
    assert not pypi.is_cached(entry)
    assert leftovers(entry) == []
    assert (pypi.obtain(entry.name) / "config.json").is_file()


def test_two_at_once(tiny_wheel, monkeypatch):
    """Another process finishes while this one converts: its folder stands, and both go on with it."""
    entry, _ = tiny_wheel
    convert, finished = conversion.convert, []

    def slower(subject, wheel, folder):
        convert(subject, wheel, folder)
        if not finished:
            finished.append(None)
            finished.append((pypi.obtain(entry.name) / "subject.json").stat())

    monkeypatch.setattr(conversion, "convert", slower)
    folder = pypi.obtain(entry.name)
    assert (folder / "subject.json").stat().st_ino == finished[1].st_ino
    assert leftovers(entry) == []


def test_a_folder_in_the_way(tiny_wheel):
    entry, _ = tiny_wheel
    (pypi.converted_folder(entry) / "notes").mkdir(parents=True)
    with pytest.raises(SubjectError, match=r"cannot write the cache .*set ISOTRACE_CACHE"):
        pypi.obtain(entry.name)


@pytest.fixture
def fake_index(tmp_path, monkeypatch):
    """pip sees only the wheels of this folder, and the cache is empty."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("ISOTRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "index"


def test_offline(fake_index):
    with pytest.raises(
        SubjectError, match=r"cannot download sapiens==1.0.2 with pip \(.*\): check the network, or put sap"
    ):
        pypi.obtain("sapiens/vh")
    assert list(pypi.cache_folder().rglob("*.whl")) == []


def test_another_file_under_the_same_name(fake_index):
    wheel = find("sapiens/vh").wheel
    with zipfile.ZipFile(fake_index / wheel.file, "w") as archive:
        information = "sapiens-1.0.2.dist-info"
        archive.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: sapiens\nVersion: 1.0.2\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    kept = pypi.cache_folder() / "wheels" / wheel.file
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged")
    with pytest.raises(SubjectError, match=r"is not the published file \(its SHA-256 differs\)"):
        pypi.obtain("sapiens/vh")
    assert kept.read_bytes() == b"damaged"


def test_without_pip(fake_index, monkeypatch):
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SubjectError, match=r"cannot download sapiens==1\.0\.2 without pip: install pip, or put sapiens"
    ):
        pypi.obtain("sapiens/vh")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOTRACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SubjectError, match="cannot write the cache"):
        pypi.obtain("sapiens/vh")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Call:
        def __reduce__(self):
            return subprocess.call, ([sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"],)

    file = io.BytesIO()
    torch.save({"model": {}, "args": Call()}, file)
    with pytest.raises(pickle.UnpicklingError):
        conversion.load(file.getvalue())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["", "numpy", "rxnfp/other", "sapiens/VH"])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(
        SubjectError, match=rf"no known subject 'pypi:{name}': give one of pypi:rxnfp/bert_pretrained, "
    ):
        find(name)


def test_a_package_stands_for_its_only_model():
    assert find("antiberty").name == "antiberty/AntiBERTy_md_smooth"
    assert find("rxnmapper").source == "pypi:rxnmapper/albert_heads_8_uspto_all_1310k"
    with pytest.raises(SubjectError, match="2 models in 'pypi:sapiens'"):
        find("sapiens")

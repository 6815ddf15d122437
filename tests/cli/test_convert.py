"""isotrace convert: there and back, what it says, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from isotrace.base.errors import DictionaryError, InputError, RunError
from isotrace.cli.convert import command
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.saving import load_dictionary, read_record, reference, save_dictionary
from isotrace.subjects.subject import load_subject
from tiny import save_subject, tiny_model

DATA = Path(__file__).parents[1] / "data" / "interop"
app = typer.Typer()
app.command()(command)


@pytest.fixture
def convert():
    """Run the command: its one JSON object; errors come through."""

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """(folder, subject): 3 layers of width 16."""
    folder = save_subject(tiny_model("esm-rotary"), tmp_path_factory.mktemp("subject"))
    return folder, load_subject(str(folder), domain="molecule")


@pytest.fixture
def own(subject, tmp_path):
    """An isotrace folder: TopK transcoders of all layers, random."""
    _, loaded = subject
    dictionary = build(configure(loaded, "transcoder", n_features=20, k=3), 0)
    for value in dictionary.parameters():
        value.data = torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    save_dictionary(dictionary, tmp_path / "own", reference(loaded), dtype=torch.float32, training={})
    return tmp_path / "own"


def test_to_another_format_and_back_is_the_same_dictionary(convert, own, subject, tmp_path):
    out = convert(own, "--to", "sparsify", "--out", tmp_path / "there")
    assert out["source_format"] == "isotrace"
    assert out["layers"] == [0, 1, 2]
    assert max(out["difference_features"], out["difference_output"]) < 1e-6
    back = convert(tmp_path / "there", "--to", "isotrace", "--out", tmp_path / "back", "--subject", subject[0])
    assert back["source_format"] == "sparsify"
    assert back["hookpoints"] == ["layers.{}.mlp_in", "layers.{}.mlp_out"]
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("own", "back"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a if name not in ("mean_activation", "density"))
    record = read_record(tmp_path / "back")
    assert record.subject == reference(load_subject(str(subject[0])))
    assert any("mean activation" in note for note in record.training["notes"])
    load_dictionary(tmp_path / "back", subject[1])


def test_lower_precision_is_measured_not_hidden(convert, own, subject, tmp_path):
    convert(own, "--to", "sparsify", "--out", tmp_path / "there")
    out = convert(
        *(tmp_path / "there", "--to", "isotrace", "--out", tmp_path / "half"),
        *("--subject", subject[0], "--dtype", "bfloat16"),
    )
    assert 1e-5 < out["difference_output"] < 1
    assert read_record(tmp_path / "half").weights_dtype == "bfloat16"


def test_between_two_foreign_formats(convert, tmp_path):
    source = DATA / "dictionary_learning" / "BatchTopKSAE" / "files"
    said = ("--hookpoint-in", "layers.{}.mlp_out")
    out = convert(source, "--to", "saelens", "--out", tmp_path / "sae", "--layer", 5, *said)
    assert (out["source_format"], out["layers"]) == ("dictionary_learning", [5])
    assert any("folded" in note for note in out["notes"])
    assert any("k 3 is lost" in note for note in out["notes"])
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["metadata"]["hook_name"]) == ("jumprelu", "blocks.5.hook_mlp_out")


def test_plain_text_says_what_was_folded_and_how_it_was_checked(tmp_path):
    source = DATA / "saelens" / "standard" / "files"
    result = CliRunner().invoke(app, [str(source), "--to", "saelens", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "saelens → saelens: sae, relu" in result.stdout
    assert "note: b_dec, subtracted before the encoder, was folded" in result.stdout
    assert "check: read back" in result.stdout


def test_refusals(convert, own, subject, tmp_path):
    sae = DATA / "saelens" / "standard" / "files"
    out = ("--out", tmp_path / "out")
    with pytest.raises(InputError, match="--subject"):
        convert(sae, "--to", "isotrace", *out)
    with pytest.raises(DictionaryError, match="do not fit"):
        convert(sae, "--to", "isotrace", *out, "--subject", subject[0])
    with pytest.raises(DictionaryError, match=r"no hookpoint layers\.\{\}\.resid_mid.*give --hookpoint-in"):
        convert(DATA / "circuit_tracer" / "plt_relu" / "files", "--to", "isotrace", *out, "--subject", subject[0])
    with pytest.raises(InputError, match="cannot be written"):
        convert(sae, "--to", "interplm", *out)
    with pytest.raises(InputError, match="--dtype"):
        convert(sae, "--to", "saelens", *out, "--dtype", "float16")
    with pytest.raises(DictionaryError, match="autoencoders"):
        convert(own, "--to", "dictionary_learning", *out)
    with pytest.raises(DictionaryError, match="relu and jumprelu only"):
        convert(own, "--to", "circuit_tracer", *out)
    with pytest.raises(InputError, match="one folder"):
        convert(own, own, "--to", "saelens", *out)
    with pytest.raises(DictionaryError, match="no ProtoMech checkpoint"):
        other = DATA / "interprot" / "topk" / "files" / "sae.safetensors"
        convert(other, "--from", "protomech", "--k", 3, *out, "--to", "saelens")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", own):
        with pytest.raises(RunError, match="--out"):
            convert(sae, "--to", "saelens", "--out", place)
    with pytest.raises(RunError, match="cannot"):
        convert(sae, "--to", "saelens", "--out", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"

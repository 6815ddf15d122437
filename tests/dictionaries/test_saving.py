"""Damage and mismatch are noticed when a dictionary is loaded, and the message says which."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary


@pytest.fixture
def saved(rotary, tmp_path):
    folder = tmp_path / "dictionary"
    save_dictionary(
        tiny.random_dictionary(rotary, window=2), folder, reference(rotary), dtype=torch.float32, training={"seed": 0}
    )
    return folder


def record(folder):
    return json.loads((folder / "dictionary.json").read_text())


def rewrite(folder, **changes):
    (folder / "dictionary.json").write_text(json.dumps(record(folder) | changes))


def reweigh(folder, change):
    """Alter the weights and their checksum with them, as an exporter with a fault would."""
    path = folder / "weights.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    rewrite(folder, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_intact(saved, rotary):
    assert load_dictionary(saved, rotary).config == tiny.random_dictionary(rotary, window=2).config
    assert record(saved)["training"] == {"seed": 0}
    assert len(record(saved)["fingerprint"]) == tiny.N_LAYERS


RULE_CASES = [("crosslayer", "topk"), ("sae", "batchtopk"), ("skip_transcoder", "jumprelu"), ("transcoder", "gated")]


@pytest.mark.parametrize(("architecture", "rule"), RULE_CASES)
@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinity"), (float("inf"), "NaN"), (7e4, r"beyond torch\.float16")]
)
def test_what_cannot_be_saved_is_refused(rotary, tmp_path, architecture, rule, value, message):
    """In every tensor in turn, and nothing is left that could be taken for a dictionary."""
    k = 3 if "topk" in rule else None
    for name in tiny.random_dictionary(rotary, architecture, activation=rule, k=k).state_dict():
        dictionary = tiny.random_dictionary(rotary, architecture, activation=rule, k=k)
        dictionary.state_dict()[name][..., 1] = value
        with pytest.raises(DictionaryError, match=rf"{name} holds .*{message}"):
            save_dictionary(dictionary, tmp_path, reference(rotary), dtype=torch.float16, training={})
        assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_weights_keep_their_fingerprint(rotary, tmp_path, dtype):
    dictionary = tiny.random_dictionary(rotary)
    save_dictionary(dictionary, tmp_path, reference(rotary), dtype=dtype, training={})
    loaded = load_dictionary(tmp_path, rotary)
    assert record(tmp_path)["weights_dtype"] == str(dtype).removeprefix("torch.")
    for name, value in dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype).float())
        assert loaded.state_dict()[name].dtype == torch.float32


@pytest.mark.parametrize("cut", [1, 1000])
def test_truncated_weights(saved, cut):
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DictionaryError, match="truncated or altered"):
        load_dictionary(saved)


def test_missing_weights(saved):
    (saved / "weights.safetensors").unlink()
    with pytest.raises(DictionaryError, match="missing"):
        load_dictionary(saved)


@pytest.mark.parametrize("place", [-1, 5000, 300])
def test_a_flipped_bit(saved, place):
    path = saved / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DictionaryError, match="truncated or altered"):
        load_dictionary(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights(saved, value):
    reweigh(saved, lambda s: s["W_dec.1"][3].fill_(value))
    with pytest.raises(DictionaryError, match=r"W_dec\.1.* NaN or infinity"):
        load_dictionary(saved)


def test_a_changed_weight_breaks_the_fingerprint(saved):
    reweigh(saved, lambda s: s["W_dec.0"].mul_(1.5))
    with pytest.raises(DictionaryError, match="fingerprint"):
        load_dictionary(saved)


def test_swapped_decoders_break_the_fingerprint(saved, rotary):
    """The layout a checksum of right shapes cannot see: the target layers of a source in another order."""
    d = rotary.d_model
    reweigh(saved, lambda s: s.__setitem__("W_dec.0", s["W_dec.0"].roll(d, dims=1).contiguous()))
    with pytest.raises(DictionaryError, match="fingerprint"):
        load_dictionary(saved)


@pytest.mark.parametrize(
    "change", [lambda f: [v * 1.01 for v in f], lambda f: f[:-1], lambda f: [*f, 1.0], lambda f: []]
)
def test_another_fingerprint(saved, change):
    rewrite(saved, fingerprint=change(record(saved)["fingerprint"]))
    with pytest.raises(DictionaryError, match="fingerprint"):
        load_dictionary(saved)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"format_version": 1}, "format_version: Input should be 2"),
        ({"format": "other"}, "format"),
        ({"comment": "hello"}, "comment"),
        ({"fingerprint": [None] * 3}, "fingerprint"),
        ({"weights_dtype": "int8"}, "weights_dtype"),
    ],
)
def test_an_invalid_record(saved, changes, cause):
    rewrite(saved, **changes)
    with pytest.raises(DictionaryError, match=rf"dictionary\.json .* not valid .*{cause}"):
        load_dictionary(saved)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"hidden": 3}, r"config\.hidden: Unexpected keyword"),
        ({"activation": "relu"}, "relu takes no k"),
        ({"activation": "other"}, "no sparsity rule 'other'"),
        ({"hookpoint_in": "resid"}, "hookpoint 'resid' must have the form"),
        ({"k": 100}, "k 100 is larger than n_features 12"),
        ({"prefixes": [4, 8]}, "prefixes must increase and end with n_features"),
        ({"n_layers": 2}, r"config\.n_layers"),
        ({"layers": [0, 2, 1]}, "layers must be increasing"),
    ],
)
def test_an_invalid_config(saved, changes, cause):
    rewrite(saved, config=record(saved)["config"] | changes)
    with pytest.raises(DictionaryError, match=cause):
        load_dictionary(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00broken"])
def test_an_unreadable_record(saved, content):
    (saved / "dictionary.json").write_bytes(content)
    with pytest.raises(DictionaryError, match="not valid"):
        load_dictionary(saved)


@pytest.mark.parametrize("key", ["config", "subject", "fingerprint", "format_version"])
def test_a_missing_key(saved, key):
    rest = {k: v for k, v in record(saved).items() if k != key}
    (saved / "dictionary.json").write_text(json.dumps(rest))
    with pytest.raises(DictionaryError, match=key):
        load_dictionary(saved)


@pytest.mark.parametrize(
    "changes",
    [{"n_features": 13}, {"window": 3}, {"layers": [0, 1]}, {"d_in": 8}, {"skip": True}, {"activation": "batchtopk"}],
)
def test_a_config_of_another_shape(saved, changes):
    rewrite(saved, config=record(saved)["config"] | changes)
    with pytest.raises(DictionaryError, match="do not fit its config"):
        load_dictionary(saved)


def test_another_k_breaks_the_fingerprint(saved):
    rewrite(saved, config=record(saved)["config"] | {"k": 2})
    with pytest.raises(DictionaryError, match="fingerprint"):
        load_dictionary(saved)


def test_an_unknown_architecture(saved):
    rewrite(saved, config=record(saved)["config"] | {"architecture": "gated"})
    with pytest.raises(DictionaryError, match="no architecture 'gated': give one of crosslayer"):
        load_dictionary(saved)


def test_another_subject(saved, folders):
    with pytest.raises(DictionaryError, match=r"model_type esm ≠ bert.*weights_sha256"):
        load_dictionary(saved, tiny.load_tiny(folders["bert"]))
    with pytest.raises(DictionaryError, match="weights_sha256") as caught:
        load_dictionary(saved, tiny.load_tiny(folders["esm-token-dropout"]))
    assert "model_type" not in str(caught.value)


def test_the_same_weights_that_compute_something_else(saved, rotary, tmp_path):
    """Another epsilon of the norms, in the config beside the same weights."""
    shutil.copytree(rotary.files.folder, tmp_path / "altered")
    path = tmp_path / "altered" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"layer_norm_eps": 1e-3, "output_attentions": False}))
    altered = tiny.load_tiny(tmp_path / "altered")
    with pytest.raises(DictionaryError, match=r"not on .*: layer_norm_eps 1e-\d+ ≠ 0\.001\. Use"):
        load_dictionary(saved, altered)
    without = {k: v for k, v in record(saved)["subject"].items() if k != "settings"}
    rewrite(saved, subject=without)  # a file of before settings were written
    load_dictionary(saved, altered)


def test_another_layer_count(saved, rotary, tmp_path):
    folder = tiny.save_subject(tiny.tiny_model("esm-rotary", num_hidden_layers=2), tmp_path / "two")
    with pytest.raises(DictionaryError, match="n_layers 3 ≠ 2"):
        load_dictionary(saved, tiny.load_tiny(folder))


@pytest.mark.parametrize(
    ("changes", "message"), [({"layers": (1, 2, 3)}, "covers layers"), ({"d_out": 8}, "of width 8")]
)
def test_a_shape_that_is_not_the_subjects(rotary, tmp_path, changes, message):
    """The reference is right but the dictionary itself covers a layer or a width the subject does not have."""
    dictionary = tiny.randomised(tiny.with_config(tiny.random_dictionary(rotary), **changes))
    save_dictionary(dictionary, tmp_path, reference(rotary), dtype=torch.float32, training={})
    assert load_dictionary(tmp_path).config == dictionary.config
    with pytest.raises(DictionaryError, match=rf"{message}.* the subject has 3 of 16"):
        load_dictionary(tmp_path, rotary)


def test_another_tokenizer(saved):
    rewrite(saved, subject=record(saved)["subject"] | {"tokenizer_sha256": "0" * 64})
    assert load_dictionary(saved).config.n_layers == tiny.N_LAYERS, "without a subject there is nothing to compare"


def test_another_tokenizer_with_its_subject(saved, rotary):
    rewrite(saved, subject=record(saved)["subject"] | {"tokenizer_sha256": "0" * 64})
    with pytest.raises(DictionaryError, match="tokenizer_sha256 0000"):
        load_dictionary(saved, rotary)


@pytest.mark.parametrize(
    ("source", "message"), [("bundled:other", "no bundled dictionary 'other'"), ("nowhere", "is no dictionary")]
)
def test_nothing_there(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DictionaryError, match=message):
        load_dictionary(source)

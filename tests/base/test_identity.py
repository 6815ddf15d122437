import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.identity import Source, identity
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary


@dataclass(frozen=True)
class Point:
    x: float
    y: tuple[int, ...]


@dataclass(frozen=True)
class Vector:
    x: float
    y: tuple[int, ...]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (1, 1.0), (1, "1"), ("ab", ["a", "b"]), (["ab", "c"], ["a", "bc"]), ([1, [2]], [[1], 2]), (None, 0),
        ({"a": 1}, {"a": 2}), ({"a": 1}, {"b": 1}), ({"a": None}, {}), (Point(1.0, (1,)), Point(1.0, (1, 1))),
        (Point(1.0, (1,)), Vector(1.0, (1,))),
        (np.zeros(4), np.zeros((2, 2))), (np.zeros(2, np.float32), np.zeros(1, np.float64)),
        (torch.zeros(2), torch.zeros(2, 1)), (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (np.asarray(["ab", "c"]), np.asarray(["a", "bc"])), (b"a", "a"),
        (np.zeros((3, 0)), np.zeros((0, 3))), (torch.zeros(3, 0), torch.zeros(0)), (np.float32(1), np.float64(1)),
    ],
)  # fmt: skip
def test_what_differs_has_another_identity(one, other):
    assert identity(one) == identity(one)
    assert identity(one) != identity(other)


def test_order_of_keys_and_memory_do_not_count():
    assert identity({"a": 1, "b": [2]}) == identity({"b": [2], "a": 1})
    table = torch.arange(6.0).reshape(2, 3)
    assert identity(table.T) == identity(table.T.contiguous()) != identity(table)
    assert identity({"a", "b"}) == identity({"b", "a"})
    with pytest.raises(TypeError, match="no identity"):
        identity(object())


def test_files_count_by_content_and_inner_name(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("x")
    assert identity(tmp_path / "one") == identity(tmp_path / "two")
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
    assert identity(tmp_path / "one") != identity(tmp_path / "two")
    assert identity(tmp_path / "one" / "a.txt") == identity(tmp_path / "two" / "b.txt")
    with pytest.raises(FileNotFoundError):
        identity(tmp_path / "three")


@pytest.fixture
def dictionary(rotary):
    return tiny.random_dictionary(rotary)


def test_a_dictionary_is_its_weights_and_its_settings(rotary, dictionary, tmp_path):
    save_dictionary(dictionary, tmp_path, reference(rotary), dtype=torch.float32, training={})
    own = identity(dictionary)
    assert own == identity(load_dictionary(tmp_path)) == Source.of("d", dictionary).identity
    found = {own}
    for change in ("negated", "renumbered", "density", "k"):
        other = tiny.random_dictionary(rotary)
        if change == "negated":  # one decoder row, which the load check's 16 random inputs need not touch
            other.W_dec[2][7].neg_()
        if change == "renumbered":
            order = torch.arange(12).roll(1)
            for layer in range(3):
                other.W_enc[layer].data = other.W_enc[layer][:, order]
                other.b_enc[layer].data = other.b_enc[layer][order]
                other.W_dec[layer].data = other.W_dec[layer][order]
            assert other.fingerprint() == pytest.approx(dictionary.fingerprint())  # the same function
        if change == "density":
            other.density[0, 0] += 1e-3
        if change == "k":
            other.config = replace(other.config, k=4)
        found.add(identity(other))
    assert len(found) == 5


def test_a_subject_is_its_config_its_weights_and_its_tokenizer(folders, tmp_path):
    source = folders["esm-rotary"]
    own = identity(tiny.load_tiny(source))
    found = {own}
    for change in ("nothing", "eps", "weights", "tokenizer"):
        model = tiny.tiny_model("esm-rotary")
        folder = tiny.save_subject(model, tmp_path / change)
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        if change == "eps":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
        if change == "weights":
            next(iter(model.parameters())).data += 1e-3
            model.save_pretrained(folder)
        if change == "tokenizer":
            text = (folder / "tokenizer.json").read_text()
            (folder / "tokenizer.json").write_text(text.replace("|Tl|Pb|", "|Pb|Tl|"))
        subject = tiny.load_tiny(folder)
        subject.tokenizer(["CCO", "C"], padding=True, truncation=True, max_length=4)  # what it did last does not count
        found.add(identity(subject))
    assert own in found
    assert len(found) == 4

"""Edits as a folder: what is read is what was saved, and nothing else is."""

import json
from dataclasses import replace

import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.dictionaries.features import Features
from isotrace.interventions import Tokens
from isotrace.steering import EDITS, Calibrated, Edits
from tiny_edits import one_of

DOSE = Calibrated(0.3, 0.11, 0.1, {"inputs": 20, "objective": "masked"})


@pytest.fixture
def edits(rotary):
    every = tuple(one_of(kind, rotary) for kind in EDITS)
    capped = replace(every[0], norm="cap", limit=3.0, rounds=(0, 2), where=Tokens("masked", ("<cls>",)))
    return Edits(
        (*every, capped), "by hand", {"k": 3, "sites": [1, 2]}, {"length": -0.25, "C": torch.nan}, "ab12", DOSE
    )


def dictionaries(edits):
    return [e.components.dictionary for e in edits.edits if isinstance(e.components, Features)]


def test_every_kind_is_read_as_it_was_saved(rotary, edits, tmp_path):
    again = Edits.load(edits.save(tmp_path / "edits", rotary), rotary, dictionaries(edits))
    assert again.plan(0.5) == edits.plan(0.5)
    assert again.plan(round=1) == edits.plan(round=1) != edits.plan(round=0)
    assert [(e.kind, e.where, e.norm, e.limit, e.rounds) for e in again.edits] == [
        (e.kind, e.where, e.norm, e.limit, e.rounds) for e in edits.edits
    ]
    assert (again.method, again.settings, again.data, again.dose) == ("by hand", edits.settings, "ab12", DOSE)
    assert again.confounds == pytest.approx(edits.confounds, nan_ok=True)
    # a twin of what was read is the twin of what was saved
    assert again.twin(3).plan(0.5) == edits.twin(3).plan(0.5)
    batch = rotary.tokenize(["CCO"])
    batch = batch.with_ids(batch.ids.masked_fill(batch.ids == rotary.token_id("O"), rotary.mask_id))
    assert torch.equal(rotary.run(batch, plan=again.plan()).logits, rotary.run(batch, plan=edits.plan()).logits)


def test_another_subject_is_told_what_differs(rotary, edits, tmp_path):
    folder = edits.save(tmp_path / "edits", rotary)
    other = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), tmp_path / "bert"))
    with pytest.raises(InputError, match=r"not for .*model_type esm ≠ bert; weights_sha256 .*Use its own subject"):
        Edits.load(folder, other, dictionaries(edits))


def test_dictionaries_are_given_again(rotary, edits, tmp_path):
    folder = edits.save(tmp_path / "edits", rotary)
    with pytest.raises(InputError, match="was not given"):
        Edits.load(folder, rotary, [tiny.random_dictionary(rotary, window=1)])


def test_damaged_folders(rotary, edits, tmp_path):
    edits = Edits(edits.edits[:2], dose=DOSE)
    folder = edits.save(tmp_path / "edits", rotary)
    record, weights = (folder / "edit.json").read_text(), (folder / "weights.safetensors").read_bytes()

    def refused(message, change=None, text=None):
        given = json.loads(record)
        if change is not None:
            change(given)
        (folder / "edit.json").write_text(json.dumps(given) if text is None else text)
        with pytest.raises(InputError, match=message):
            Edits.load(folder, rotary)

    refused(r"damaged or of another version \(more: Unexpected keyword argument\)", lambda r: r.update(more=1))
    refused("format_version: Input should be 1", lambda r: r.update(format_version=2))
    refused("edits: Field required", lambda r: r.pop("edits"))
    refused("no kind of edit 'magic'", lambda r: r["edits"][0].update(kind="magic"))
    refused("unexpected keyword argument 'more'", lambda r: r["edits"][0].update(more=1))
    refused("missing 1 required keyword-only argument: 'layer'", lambda r: r["edits"][0].pop("layer"))
    refused("there is no layer 7", lambda r: r["edits"][0].update(layer=7))
    refused("is damaged", lambda r: r["edits"][0].update(layer="first"))
    refused("unexpected keyword argument 'when'", lambda r: r["dose"].update(when="now"))
    refused("damaged or of another version", text=record[: len(record) // 2])
    for damage in (weights[:-9], weights[:-1] + bytes([weights[-1] ^ 1])):
        (folder / "edit.json").write_text(record)
        (folder / "weights.safetensors").write_bytes(damage)
        with pytest.raises(InputError, match="truncated or altered"):
            Edits.load(folder, rotary)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="is missing"):
        Edits.load(folder, rotary)
    (folder / "edit.json").unlink()
    with pytest.raises(InputError, match=r"holds no edit\.json"):
        Edits.load(folder, rotary)


def test_edits_that_do_not_fit_are_not_saved(rotary, tmp_path):
    wrong = replace(one_of("add", rotary), direction=torch.ones(5))
    with pytest.raises(InputError, match=r"direction is \[1, 5\]"):
        Edits((wrong,)).save(tmp_path / "edits", rotary)
    assert not (tmp_path / "edits").exists()

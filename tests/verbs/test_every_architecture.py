"""Every architecture of the registry through every mechanism: trained, saved, loaded, evaluated, annotated, edited, and
traced or refused with a reason. A new one is walked without a change here."""

import pytest
import torch

import isotrace
import tiny
from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.dictionaries.saving import load_dictionary
from isotrace.dictionaries.shelf import shelf_of
from isotrace.interventions.components import mean_values
from isotrace.training import loop

CONFIG = """
[training]
batch_tokens = 32
dtype = "float32"
[stream]
block_tokens = 128
harvest_tokens = 64
"""
N_FEATURES = 36  # usual rules have 32 of them active
QUICK = {"max_features": 30, "nodes": 4, "controls": 2, "spellings": 0}


@pytest.fixture(autouse=True)
def short_statistics(monkeypatch):
    monkeypatch.setattr(loop, "STATISTICS_TOKENS", 128)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_it_goes_through_every_mechanism(name, rotary, tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG)
    texts, folder = tiny.MOLECULES, tmp_path / "run"
    given = {"architecture": name, "tokens": 192, "features": N_FEATURES, "config": tmp_path / "c.toml"}
    answer = isotrace.train(rotary, texts, out=folder, **given)
    assert answer.summary["dictionaries"][0]["architecture"] == name
    dictionary = load_dictionary(folder, rotary)
    again = load_dictionary(folder, rotary)
    x = torch.randn(tiny.N_LAYERS, 7, dictionary.config.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dictionary(x), again(x))
    assert type(dictionary) is ARCHITECTURES[name]
    assert 0 < float(dictionary.density.max()) <= 1

    fidelity = isotrace.evaluate(rotary, dictionary, texts, bootstrap=20, mask_rate=0.5, out=tmp_path / "fidelity")
    assert fidelity.to_frame().height > 0
    few = {"sources": ("dictionary", "neurons"), "permutations": 20, "bootstrap": 20, "min_positive": 1, "spellings": 0}
    isotrace.annotate(rotary, dictionary, texts, attach=True, out=tmp_path / "names", **few)
    assert shelf_of(load_dictionary(folder, rotary)).tables.features.height == N_FEATURES * tiny.N_LAYERS

    features, batch = Features(dictionary), rotary.tokenize(texts[:2])
    mean = mean_values(rotary, features, [batch])
    assert [m.shape for m in mean] == [(N_FEATURES, 1)] * tiny.N_LAYERS
    own = rotary.hidden(batch.ids, batch.mask)
    with features.edited(rotary, lambda _, values: values):
        assert torch.equal(rotary.hidden(batch.ids, batch.mask), own)
    busiest = int(dictionary.density[0].argmax())
    with features.edited(rotary, lambda layer, values: values.index_fill(2, torch.tensor([busiest]), 3.0)):
        assert not torch.allclose(rotary.hidden(batch.ids, batch.mask), own)

    sites = dictionary.config.hookpoint_in, dictionary.config.hookpoint_out
    if sites == ("layers.{}.mlp_in", "layers.{}.mlp_out") and not dictionary.config.skip:
        assert isotrace.trace(rotary, dictionary, texts[0], "mask:2", **QUICK).to_frame().height > 0
    else:
        with pytest.raises(DictionaryError, match=r"a circuit needs a|skip path"):
            isotrace.trace(rotary, dictionary, texts[0], "mask:2", **QUICK)

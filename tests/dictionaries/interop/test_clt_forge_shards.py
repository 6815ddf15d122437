"""Checkpoints of CLT-Forge whose features are divided among files, where the files are not as they should be."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries import interop
from isotrace.dictionaries.interop import Hints

DATA = Path(__file__).parents[2] / "data" / "interop" / "clt_forge"


def test_shards_of_which_one_is_missing_cut_short_or_different(tmp_path):
    folder, said = tmp_path / "run", Hints((), "layers.{}.mlp_in", "layers.{}.mlp_out")
    shutil.copytree(DATA / "sharded" / "files", folder)
    first, second = (folder / f"rank{r}_clt_weights.safetensors" for r in (0, 1))
    weights = load_file(second)
    save_file(weights | {"b_dec": 2 * weights["b_dec"]}, second)
    taken = interop.read([folder], said)
    assert any("differ in b_dec" in note for note in taken.notes)
    whole = interop.read([DATA / "sharded" / "files"], said)
    assert all(torch.equal(value, whole.state[name]) for name, value in taken.state.items())
    save_file({name: value for name, value in weights.items() if name != "W_enc"}, second)
    with pytest.raises(DictionaryError, match="different weights"):
        interop.read([folder], said)
    second.write_bytes(second.read_bytes()[:200])
    with pytest.raises(DictionaryError, match="cannot be read"):
        interop.read([folder], said)
    second.unlink()
    with pytest.raises(DictionaryError, match="W_enc has shape"):
        interop.read([folder], said)
    save_file(weights, second)
    first.unlink()
    with pytest.raises(DictionaryError, match="without a gap"):
        interop.read([folder], said)
    with pytest.raises(DictionaryError, match="--hookpoint-in"):
        interop.read([DATA / "crosslayer" / "files"], Hints())

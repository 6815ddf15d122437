"""With a tool installed, it loads what is written now, not only what was recorded."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import make_interop_fixtures as script
from isotrace.dictionaries import interop
from isotrace.dictionaries.saving import load_dictionary

DATA = Path(__file__).parents[2] / "data" / "interop"
MODULES = {
    "saelens": "sae_lens",
    "sparsify": "sparsify",
    "circuit_tracer": "circuit_tracer",
    "dictionary_learning": "dictionary_learning",
}


@pytest.mark.card
@pytest.mark.parametrize("tool", MODULES)
@pytest.mark.filterwarnings("default")  # other projects' warnings
def test_the_installed_tool_agrees(tool, tmp_path):
    if find_spec(MODULES[tool]) is None:
        pytest.skip(f"{script.PACKAGES[tool]} is not installed; what it gave is recorded and tested in test_reading.py")
    for kind in script.WRITES[tool]:
        dictionary = load_dictionary(DATA / "reverse" / "dictionaries" / kind)
        config = dictionary.config
        interop.write(dictionary, tmp_path / kind, tool, "tiny")
        x = torch.randn(config.n_layers, 8, config.d_in, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            features, y = script.LOADERS[tool](tmp_path / kind)(x)
        ours = torch.stack([dictionary.encode(s, x[s]).dense(config.n_features) for s in range(config.n_layers)])
        assert (ours - features).abs().max() <= 1e-5 * features.abs().max()
        assert (dictionary(x) - y).abs().max() <= 1e-5 * y.abs().max()

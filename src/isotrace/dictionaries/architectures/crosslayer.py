"""Cross-layer transcoder (Ameisen et al. 2025, "Circuit tracing"): features of layer s write to the MLP outputs of
layers s … s + window − 1. `window = n_layers` is the full one, `window = 1` a transcoder per layer."""

from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES


@ARCHITECTURES.named("crosslayer")
class CrossLayerTranscoder(Dictionary):
    default_in, default_out = "layers.{}.mlp_in", "layers.{}.mlp_out"

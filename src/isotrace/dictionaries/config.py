"""What a dictionary *is*. How it was trained is `isotrace.training.TrainingConfig`, saved beside it."""

from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")
FORMAT, FORMAT_VERSION = "isotrace-dictionary", 1


@dataclass(frozen=True, config=STRICT)
class SubjectReference:
    """The subject a dictionary was trained on; checked when both are brought together."""

    source: str
    model_type: str
    n_layers: int
    d_model: int
    weights_sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True, config=STRICT)
class DictionaryConfig:
    """Shape and rule of a dictionary over the MLPs of layers `0 … n_layers − 1`.

    A feature of layer s writes to the MLP outputs of layers s … min(s + window, n_layers) − 1.
    `k` features are active per token and layer.
    """

    architecture: str
    d_in: int
    d_out: int
    n_features: int
    n_layers: int
    window: int
    activation: Literal["topk"]
    k: int
    hookpoint_in: Literal["layers.{}.mlp_in"] = "layers.{}.mlp_in"
    hookpoint_out: Literal["layers.{}.mlp_out"] = "layers.{}.mlp_out"
    special_tokens: bool = True

    def targets(self, source: int) -> range:
        """Layers that features of layer `source` write to."""
        return range(source, min(source + self.window, self.n_layers))


@dataclass(frozen=True, config=STRICT)
class DictionaryFile:
    """`dictionary.json`. `fingerprint` is the reconstruction of a fixed probe batch, see `crosslayer`."""

    format: Literal["isotrace-dictionary"]
    format_version: Literal[1]
    config: DictionaryConfig
    subject: SubjectReference
    weights_sha256: str
    weights_dtype: Literal["float16", "bfloat16", "float32"]
    fingerprint: list[float]
    training: dict[str, Any]

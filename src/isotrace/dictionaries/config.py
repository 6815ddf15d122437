"""What a dictionary *is*. How it was trained is `isotrace.training.TrainingConfig`, saved beside it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from isotrace.base.errors import DictionaryError
from isotrace.base.settings import STRICT, expanded
from isotrace.subjects.sources.source import assets

FORMAT, FORMAT_VERSION = "isotrace-dictionary", 2
BUNDLED = ("molm-clt",)


@dataclass(frozen=True, config=STRICT)
class SubjectReference:
    """The subject a dictionary was trained on; checked when both are brought together. `settings`: those of its config
    that change what the same weights compute; none in files of before they were written."""

    source: str
    model_type: str
    n_layers: int
    d_model: int
    weights_sha256: str
    tokenizer_sha256: str
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class DictionaryConfig:
    """Shape and rule of a dictionary over some layers of a subject.

    `layers` are the subject's, increasing; everywhere else layer s means the s-th of them. Features of layer s
    read `hookpoint_in` of layer s and write to `hookpoint_out` of layers s … min(s + window, n_layers) − 1.
    `k` features are active per token and layer, exactly (topk) or on average over a batch (batchtopk); the
    other rules fix no number. `prefixes` are the nested sizes of a Matryoshka dictionary, the last one
    `n_features`; empty for an ordinary one. `skip` adds a linear path from the input to its own layer's output.
    `token_normalization` "standardize" takes mean and standard deviation out of every token before encoding and
    gives them back after decoding. `special_tokens` says whether special tokens were among the training tokens.
    `options`: settings that this architecture alone has.
    """

    architecture: str
    activation: str
    layers: tuple[NonNegativeInt, ...]
    d_in: PositiveInt
    d_out: PositiveInt
    n_features: PositiveInt
    hookpoint_in: str
    hookpoint_out: str
    k: PositiveInt | None = None
    window: PositiveInt = 1
    prefixes: tuple[PositiveInt, ...] = ()
    skip: bool = False
    token_normalization: Literal["none", "standardize"] = "none"
    special_tokens: bool = True
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "DictionaryConfig":
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must be increasing, and at least one")
        if self.k is not None and self.k > self.n_features:
            raise ValueError(f"k {self.k} is larger than n_features {self.n_features}")
        if self.window > self.n_layers:
            raise ValueError(f"window {self.window} is larger than the {self.n_layers} layers covered")
        if self.prefixes and (
            list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[-1] != self.n_features
        ):
            raise ValueError("prefixes must increase and end with n_features")
        for site in (self.hookpoint_in, self.hookpoint_out):
            if not (site.startswith("layers.{}.") and site.count("{") == 1):
                raise ValueError(f"hookpoint {site!r} must have the form layers.{{}}.NAME")
        return self

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def targets(self, source: int) -> range:
        """Layers that features of layer `source` write to."""
        return range(source, min(source + self.window, self.n_layers))

    @property
    def reads(self) -> list[str]:
        """Hookpoint read by each layer."""
        return [self.hookpoint_in.format(layer) for layer in self.layers]

    @property
    def writes(self) -> list[str]:
        """Hookpoint that each layer reconstructs."""
        return [self.hookpoint_out.format(layer) for layer in self.layers]


@dataclass(frozen=True, config=STRICT)
class DictionaryFile:
    """`dictionary.json`. `fingerprint` is the reconstruction of a fixed probe batch, see `Dictionary.fingerprint`."""

    format: Literal["isotrace-dictionary"]
    format_version: Literal[2]
    config: DictionaryConfig
    subject: SubjectReference
    weights_sha256: str
    weights_dtype: Literal["float16", "bfloat16", "float32"]
    fingerprint: list[float]
    training: dict[str, Any]


def dictionary_folder(source: str | Path) -> Path:
    """The folder behind `bundled:molm-clt`, `hf:org/name` or a path. Raises DictionaryError if there is none."""
    scheme, _, name = str(source).partition(":")
    if scheme == "bundled":
        if name not in BUNDLED:
            raise DictionaryError(f"no bundled dictionary {name!r}: there is bundled:{', bundled:'.join(BUNDLED)}.")
        return assets() / name
    if scheme == "hf":
        from isotrace.dictionaries.hub import hub_folder  # which takes torch

        folder = hub_folder(name)
    else:
        folder = Path(expanded(str(source)))
    if not (folder / "dictionary.json").is_file():
        raise DictionaryError(
            f"{str(source)!r} is no dictionary: give bundled:molm-clt, hf:org/name or a folder with dictionary.json."
        )
    return folder

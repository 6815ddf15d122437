"""What every format is read into and written from: one `Layer` per layer in canonical form, and how layers become
a dictionary.

Canonical: h = x W_enc + b_enc, ŷ = Σ a W_dec + b_dec (+ x W_skip). There is no bias before the encoder; another
tool's is folded, (x − c) W + b = x W + (b − c W), in float64 so that folding costs no more than one rounding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES

NO_STATISTICS = "mean activation and density are in no such file: they are 0 here, so mean ablation is zero ablation"


@dataclass(frozen=True)
class Hints:
    """What the user says because the files do not. `layers` are the subject's, from 0, one per layer read;
    hookpoints have the form `layers.{}.NAME`; `n_layers` is the depth of the subject."""

    layers: tuple[int, ...] = ()
    hookpoint_in: str | None = None
    hookpoint_out: str | None = None
    k: int | None = None
    n_layers: int | None = None


@dataclass(frozen=True)
class Layer:
    """One layer, float32: `W_enc [d_in, F]`, `b_enc [F]`, `W_dec [F, n_targets · d_out]`, `b_dec [d_out]`,
    `W_skip [d_in, d_out]`; `threshold []` (batchtopk) or `[F]` (jumprelu); `gate_bias`, `gate_scale [F]` (gated)."""

    activation: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    W_skip: Tensor | None = None
    threshold: Tensor | None = None
    gate_bias: Tensor | None = None
    gate_scale: Tensor | None = None
    prefixes: tuple[int, ...] = ()
    token_normalization: str = "none"

    def less(self, pre_bias: Tensor) -> "Layer":
        """The same layer of an encoder that subtracts `pre_bias [d_in]` from its input first."""
        return replace(self, b_enc=(self.b_enc.double() - pre_bias.double() @ self.W_enc.double()).float())

    def scaled(self, features: Tensor) -> "Layer":
        """Features times `features [F]`, all positive, decoder rows divided by it. Under topk and batchtopk this
        changes which features are chosen, which the caller must want."""
        threshold = None if self.threshold is None else self.threshold * features
        W_enc, W_dec = self.W_enc * features, self.W_dec / features[:, None]
        return replace(self, W_enc=W_enc, b_enc=self.b_enc * features, W_dec=W_dec, threshold=threshold)


@dataclass(frozen=True)
class Foreign:
    """A dictionary read from another tool's files: config, state dict, and what was folded, dropped or assumed."""

    config: DictionaryConfig
    state: dict[str, Tensor]
    notes: tuple[str, ...]

    def dictionary(self) -> Dictionary:
        result = ARCHITECTURES[self.config.architecture](self.config)
        result.load_state_dict(self.state)
        return result.eval().requires_grad_(False)


def gated(W_gate: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor, W_dec: Tensor, b_dec: Tensor) -> Layer:
    """From Rajamanoharan et al.'s parameters: magnitude x W_gate e^r + b_mag, gate x W_gate + b_gate > 0."""
    scale = r_mag.double().exp()
    gate_bias = b_gate.double() - b_mag.double() / scale
    W_enc = (W_gate.double() * scale).float()
    return Layer("gated", W_enc, b_mag, W_dec, b_dec, gate_bias=gate_bias.float(), gate_scale=r_mag)


def ungated(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(W_gate, b_gate, b_mag, r_mag): the inverse of `gated`."""
    assert layer.gate_scale is not None
    assert layer.gate_bias is not None
    scale = layer.gate_scale.double().exp()
    b_gate = layer.gate_bias.double() + layer.b_enc.double() / scale
    return (layer.W_enc.double() / scale).float(), b_gate.float(), layer.b_enc, layer.gate_scale


def assemble(
    layers: Sequence[Layer],
    numbers: Sequence[int] | None,
    hookpoints: tuple[str | None, str | None],
    hints: Hints,
    notes: Sequence[str],
    *,
    autoencoder: bool,
    window: int = 1,
) -> Foreign:
    """One dictionary of `layers`, which lie at `numbers` and `hookpoints` (in, out) of the subject, where the files
    say so; `hints` go before. Raises DictionaryError naming the option that is missing or what does not agree."""
    numbers = hints.layers or numbers
    if not numbers:
        raise DictionaryError("the files do not say which layer of the subject they belong to: give --layer.")
    if len(numbers) != len(layers):
        raise DictionaryError(f"{len(layers)} layers were read, --layer names {len(numbers)}: give one for each.")
    pairs = sorted(zip(numbers, layers, strict=True), key=lambda pair: pair[0])
    numbers, layers = [n for n, _ in pairs], [layer for _, layer in pairs]
    first = layers[0]
    given_in = hints.hookpoint_in or hookpoints[0]
    given_out = hints.hookpoint_out or (given_in if autoencoder else hookpoints[1])
    for option, site in (("--hookpoint-in", given_in), ("--hookpoint-out", given_out)):
        if site is None:
            raise DictionaryError(f"the files do not name the hookpoint: give {option} layers.{{}}.NAME.")
    for name in ("activation", "k", "prefixes", "token_normalization"):
        if len({getattr(layer, name) for layer in layers}) > 1:
            raise DictionaryError(f"the layers differ in {name}: convert them one by one with --layer.")
    if len({(layer.W_enc.shape, layer.b_dec.shape, layer.W_skip is None) for layer in layers}) > 1:
        raise DictionaryError("the layers differ in shape or in having a skip path: convert them one by one.")
    skip = first.W_skip is not None
    single = "skip_transcoder" if skip else "sae" if autoencoder else "transcoder"
    try:
        config = DictionaryConfig(
            architecture="crosslayer" if window > 1 else single,
            activation=first.activation,
            layers=tuple(numbers),
            d_in=first.W_enc.shape[0],
            d_out=first.b_dec.shape[0],
            n_features=first.W_enc.shape[1],
            hookpoint_in=str(given_in),
            hookpoint_out=str(given_out),
            k=first.k,
            window=window,
            prefixes=first.prefixes,
            skip=skip,
            token_normalization=first.token_normalization,  # pyright: ignore[reportArgumentType]
        )
        ARCHITECTURES[config.architecture].check(config)
    except ValueError as error:  # pydantic's ValidationError
        errors = getattr(error, "errors", None)
        raise DictionaryError(f"this cannot be a dictionary: {errors()[0]['msg'] if errors else error}.") from error
    statistics = torch.zeros(len(layers), config.n_features)
    state = {"mean_activation": statistics, "density": statistics.clone()}
    for s, layer in enumerate(layers):
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
            if (value := getattr(layer, name)) is not None:
                state[f"{name}.{s}"] = value
    for name in ("threshold", "gate_bias", "gate_scale"):
        if getattr(first, name) is not None:
            state[f"rule.{name}"] = torch.stack([getattr(layer, name) for layer in layers])
    return Foreign(config, state, (*dict.fromkeys(notes), NO_STATISTICS))


def layers_of(dictionary: Dictionary) -> list[Layer]:
    """The layers of a dictionary, to be written in another format."""
    config, rule = dictionary.config, dict(dictionary.rule.state_dict())
    return [
        Layer(
            config.activation,
            dictionary.W_enc[s].detach(),
            dictionary.b_enc[s].detach(),
            dictionary.W_dec[s].detach(),
            dictionary.b_dec[s].detach(),
            config.k,
            dictionary.W_skip[s].detach() if config.skip else None,
            *(rule[name][s] if name in rule else None for name in ("threshold", "gate_bias", "gate_scale")),
            prefixes=config.prefixes,
            token_normalization=config.token_normalization,
        )
        for s in range(config.n_layers)
    ]


def note_unknown(config: Mapping[str, Any], known: Iterable[str], notes: list[str]) -> None:
    """Notes the settings of a file that this format's description does not know, and that nothing was made of."""
    unknown = sorted(str(name) for name in config.keys() - {*known})
    if unknown:
        notes.append(f"settings not known here were left out: {', '.join(unknown)}")


def note_unread(state: Mapping[str, Any], read: Iterable[str], notes: list[str]) -> None:
    """The same of weights."""
    unread = sorted(state.keys() - {*read})
    if unread:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        notes.append(f"weights that no setting asks for were left out: {', '.join(unread[:5])}{more}")


def get(state: Mapping[str, Tensor], name: str, *shape: int | None) -> Tensor:
    """`state[name]` as float32 on the CPU, of that shape; None stands for any size. Raises DictionaryError."""
    if name not in state:
        raise DictionaryError(f"the weights hold no {name}: the files are not of this format, give another --from.")
    value = state[name]
    if value.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, value.shape, strict=True)):
        wanted = " × ".join("any" if n is None else str(n) for n in shape)
        raise DictionaryError(f"{name} has shape {tuple(value.shape)}, not {wanted}: the file is damaged.")
    return value.float()

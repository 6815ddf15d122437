"""Probes: linear readouts of hidden states, of one layer or several side by side, pooled or token by token.

A probe is a folder: `probe.json` says what it is (`ProbeConfig`), `probe.safetensors` holds its weights, with
standardisation and calibration folded in, so that `value = pooled · weight + bias`.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.files import write_whole
from isotrace.base.settings import STRICT, expanded

if TYPE_CHECKING:
    from torch import Tensor

    from isotrace.subjects.subject import Batch, Subject

Pool = Literal["mean", "max", "mean+max", "cls", "token"]
POOLS: tuple[Pool, ...] = get_args(Pool)
CONFIG, WEIGHTS = "probe.json", "probe.safetensors"


@checked(frozen=True, config=STRICT)
class ProbeConfig:
    """`outputs`: the property; of two classes the second, whose log-odds is the one output; of more, every class.
    `layers`: whose hidden states are read, see `Subject.hidden`. `mean`, `sd`: of the labels it was fitted on, in
    `unit`; of classes None."""

    format: Literal["isotrace-probe"]
    format_version: Literal[2]
    name: str
    description: str
    task: Literal["classification", "regression"]
    outputs: tuple[str, ...]
    unit: str
    layers: tuple[int, ...]
    pool: Pool
    subject_weights_sha256: str
    mean: float | None = None
    sd: float | None = None


@dataclass(frozen=True, eq=False)
class Probe:
    """`weight [d_pooled, outputs]`, `bias [outputs]` float32; d_pooled is the layers read × d_model, twice that for
    the pool mean+max."""

    config: ProbeConfig
    weight: "Tensor"
    bias: "Tensor"

    @property
    def task(self) -> str:
        return self.config.task

    def value(self, pooled: "Tensor") -> "Tensor":
        """`[..., outputs]` from pooled hidden states `[..., d_pooled]`."""
        return pooled @ self.weight.to(pooled) + self.bias.to(pooled)

    def read(self, subject: "Subject", batch: "Batch", hidden: "Tensor") -> "Tensor":
        """`[batch, outputs]`, of the pool token `[batch, tokens, outputs]`, from `Subject.hidden` of its layers."""
        return self.value(pool(subject, batch, hidden, self.config.pool))

    def only(self, output: int, other: int | None = None) -> Self:
        """One output: itself where it is the only one, else less another's, or less the mean of all others."""
        if len(self.bias) == 1:
            return self
        rest = [i for i in range(len(self.bias)) if i != output] if other is None else [other]
        parts = (t[..., [output]] - t[..., rest].mean(-1, keepdim=True) for t in (self.weight, self.bias))
        return replace(self, **dict(zip(("weight", "bias"), parts, strict=True)))

    def save(self, folder: Path) -> None:
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WEIGHTS, save({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}))
        write_whole(folder / CONFIG, (json.dumps(asdict(self.config), indent=2, ensure_ascii=False) + "\n").encode())


def pool(subject: "Subject", batch: "Batch", hidden: "Tensor", how: Pool = "mean") -> "Tensor":
    """`[batch, d_pooled]` of `hidden [batch, tokens, d]`: mean or maximum over real, non-special tokens, or the mean
    and then the maximum; `cls` is the first token's, of a causal subject, which has seen nothing there, the last's;
    `token` is `hidden` itself. A mask token counts: it stands for an atom or bond.

    Raises InputError for a row of special tokens only.
    """
    import torch

    if how == "token":
        return hidden
    if how == "cls":
        place = batch.mask.sum(1) - 1 if subject.objective == "causal" else batch.mask.new_zeros(len(hidden)).long()
        return hidden[torch.arange(len(hidden), device=hidden.device), place]
    weights, parts = pooling_weights(subject, batch), []
    if how != "max":
        parts.append((hidden * weights[..., None].to(hidden)).sum(1))
    if how != "mean":
        parts.append(hidden.masked_fill((weights == 0)[..., None], -torch.inf).amax(1))
    return torch.cat(parts, -1)


def pooling_weights(subject: "Subject", batch: "Batch") -> "Tensor":
    """`[batch, tokens]`, each row summing to one. Raises InputError for a row of special tokens only."""
    special = subject.special(batch.ids)
    if subject.mask_id is not None:
        special &= batch.ids != subject.mask_id
    real = (batch.mask & ~special).float()
    if not bool((real.sum(1) > 0).all()):
        raise InputError("a sequence holds special tokens only: there is nothing to pool.")
    return real / real.sum(1, keepdim=True)


def probes_of(folder: Path) -> list[str]:
    """Names of the probes that are shipped in the folder of a subject."""
    return sorted(path.parent.name for path in (folder / "probes").glob(f"*/{CONFIG}"))


def probe_folder(folder: Path, source: str, text: str) -> tuple[Path, list[str]]:
    """The folder of the probe that `text` = `NAME[:PART…]` begins with, one shipped in the folder of the subject
    `source` or a path, and the parts behind it. Raises InputError if there is none."""
    parts = text.split(":")
    for n in range(len(parts), 0, -1):
        name = ":".join(parts[:n])
        for place in (folder / "probes" / name, Path(expanded(name))):
            if name and os.path.isfile(place / CONFIG):
                return place, parts[n:]
    if os.path.isfile(old := Path(expanded(text))):
        raise InputError(f"{text!r} is a file: give the folder that isotrace probe wrote.")
    way = f"{old} holds no {CONFIG}" if os.path.isdir(old) else f"it has {', '.join(probes_of(folder)) or 'none'}"
    raise InputError(f"no probe {text!r} for {source}: {way}; isotrace probe fits one.")


def judged(folder: Path) -> dict[str, Any]:
    """`knows`, whether the subject knows the property better than an untrained copy of it does, and the `verdict`, as
    they were found when the probe in `folder` was fitted; both None where nobody looked."""
    for place, own in ((folder / "probing.json", None), (folder.parent.parent / "probe_report.json", folder.name)):
        if place.is_file():
            found = json.loads(place.read_bytes())
            found = found if own is None else found.get(own, {})
            return {name: found.get(name) for name in ("knows", "verdict")}
    return {"knows": None, "verdict": None}


def read_config(folder: Path) -> ProbeConfig:
    """Raises SubjectError for a damaged file or one of another format."""
    try:
        text = json.loads((folder / CONFIG).read_bytes())
        return TypeAdapter(ProbeConfig).validate_python(text)
    except ValueError:  # ValidationError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise SubjectError(
            f"{folder / CONFIG} is damaged or of another version: fit the probe again (isotrace probe)."
        ) from None


def load_probe(subject: "Subject", text: str) -> tuple[Probe, list[str]]:
    """The probe that `text` begins with, and the parts behind its name, see `probe_folder`. Raises InputError as that,
    SubjectError if it belongs to other weights or is damaged."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder, rest = probe_folder(subject.files.folder, subject.source, text)
    config = read_config(folder)
    if config.subject_weights_sha256 != subject.files.weights_sha256:
        raise SubjectError(
            f"probe {config.name!r} was fitted on other weights than those of {subject.source}: fit it again."
        )
    try:
        found: dict[str, Any] = load_file(folder / WEIGHTS)
        weight, bias = found["weight"], found["bias"]
    except (OSError, SafetensorError, KeyError) as error:
        raise SubjectError(f"{folder / WEIGHTS} is missing or damaged ({error}): fit the probe again.") from None
    width = len(config.layers) * subject.d_model * (2 if config.pool == "mean+max" else 1)
    if weight.shape != (width, len(config.outputs)) or bias.shape != (len(config.outputs),):
        raise SubjectError(f"{folder / WEIGHTS} does not fit its {CONFIG}: fit the probe again.")
    if not all(bool(torch.isfinite(t).all()) for t in (weight, bias)):
        raise SubjectError(f"probe {config.name!r} holds NaN or infinity: fit it again.")
    return Probe(config, weight, bias), rest

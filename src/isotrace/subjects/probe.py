"""Linear probes on the mean-pooled final hidden state: pool → standardise → linear."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.settings import STRICT, expanded

if TYPE_CHECKING:
    from torch import Tensor

    from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True, config=STRICT)
class Probe:
    """`value = ((pooled − mean) / scale) · weight + bias`, in `unit`: a log-odds for classification.

    `mean`, `scale` and `weight` have d_model entries.
    """

    format: Literal["isotrace-probe"]
    format_version: Literal[1]
    name: str
    description: str
    task: Literal["classification", "regression"]
    unit: str
    subject_weights_sha256: str
    mean: list[float]
    scale: list[float]
    weight: list[float]
    bias: float

    def read_vector(self) -> "tuple[Tensor, float]":
        """(`[d_model]`, constant): value = pooled · vector + constant."""
        import torch

        mean, scale, weight = (torch.tensor(v) for v in (self.mean, self.scale, self.weight))
        vector = weight / scale
        return vector, float(self.bias - mean @ vector)

    def value(self, pooled: "Tensor") -> "Tensor":
        """`[...]` from pooled hidden states `[..., d_model]`."""
        vector, constant = self.read_vector()
        return pooled @ vector.to(pooled) + constant


def pool(subject: "Subject", batch: "Batch", final: "Tensor") -> "Tensor":
    """Mean of `final [batch, tokens, d_model]` over real, non-special tokens: `[batch, d_model]`.

    A mask token counts: it stands for an atom or bond.
    """
    weights = pooling_weights(subject, batch)
    return (final * weights[..., None]).sum(1)


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
    return sorted(path.stem for path in (folder / "probes").glob("*.json"))


def probe_file(folder: Path, source: str, name: str) -> Path:
    """The probe shipped in the folder of the subject `source` under `name`, or the JSON file `name`. Raises InputError
    if there is none."""
    path = Path(expanded(name)) if name.endswith(".json") else folder / "probes" / f"{name}.json"
    if not path.is_file():
        raise InputError(f"no probe {name!r} for {source}: it has {', '.join(probes_of(folder)) or 'none'}.")
    return path


def load_probe(subject: "Subject", name: str) -> Probe:
    """The probe that `probe_file` finds. Raises InputError as that, SubjectError if it belongs to other weights or is
    damaged."""
    path = probe_file(subject.files.folder, subject.source, name)
    try:
        probe = TypeAdapter(Probe).validate_python(json.loads(path.read_text()))
    except ValueError as error:  # ValidationError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise SubjectError(f"probe file {path.name} is damaged: get it again.") from error
    if probe.subject_weights_sha256 != subject.files.weights_sha256:
        raise SubjectError(f"probe {name!r} was fitted on other weights than those of {subject.source}: fit it again.")
    if not np.isfinite([*probe.mean, *probe.scale, *probe.weight, probe.bias]).all():
        raise SubjectError(f"probe {name!r} holds NaN or infinity: get it again.")
    return probe

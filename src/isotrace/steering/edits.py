"""Edits that a method found: several, applied together, with what is known of how they came about."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions import Plan, Tokens
from isotrace.steering.kinds import Edit, Norm
from isotrace.subjects.subject import Subject


@dataclass(frozen=True)
class Calibrated:
    """A strength `alpha`, the mean Kullback–Leibler divergence `kl` in nats that it has, the one aimed at, and on what
    and how it was measured, see `steering.dose`."""

    alpha: float
    kl: float
    target: float
    how: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Edits:
    """`edits` are applied in their order. `method` and `settings` say how they were found, `data` is the identity of
    the data, `confounds` the cosine between their direction and that of each nuisance (length, token counts)."""

    edits: tuple[Edit, ...]
    method: str = "given"
    settings: Mapping[str, Any] = field(default_factory=dict)
    confounds: Mapping[str, float] = field(default_factory=dict)
    data: str | None = None
    dose: Calibrated | None = None

    def __post_init__(self) -> None:
        if not self.edits:
            raise InputError("there is no edit: give one at least.")

    def __or__(self, other: "Edits") -> "Edits":
        """Both, one after the other. The dose is none: two fitted edits do not add."""
        found = {}
        for one in (self, other):
            found |= {f"{one.method}: {name}": value for name, value in one.confounds.items()}
        settings = {"parts": [{"method": e.method, **e.settings} for e in (self, other)]}
        data = self.data if self.data == other.data else None
        return Edits(self.edits + other.edits, f"{self.method} + {other.method}", settings, found, data)

    def at(
        self,
        where: Tokens | None = None,
        norm: Norm | None = None,
        limit: float | None = None,
        rounds: Sequence[int] | None = None,
    ) -> "Edits":
        """The same at other tokens, with another treatment of norms, in other rounds; None leaves what is. The dose is
        dropped."""
        given: dict[str, Any] = {} if where is None else {"where": where}
        given |= {} if norm is None else {"norm": norm, "limit": limit}
        given |= {} if rounds is None else {"rounds": tuple(rounds)}
        return replace(self, edits=tuple(replace(edit, **given) for edit in self.edits), dose=None)

    def plan(self, alpha: float | None = None, round: int | None = None) -> Plan:
        """At a strength, by default the calibrated one; the empty plan for 0. `round`: of an iterative decoding, from
        1, where edits that are off in it are left out. Raises InputError where no strength is known."""
        if alpha is None:
            if self.dose is None:
                raise InputError("these edits have no dose yet: give alpha, or calibrate them.")
            alpha = self.dose.alpha
        on = (e for e in self.edits if round is None or e.rounds is None or round in e.rounds)
        return Plan.of(*(edit.plan(alpha) for edit in on))

    def twin(self, seed: int, covariances: Sequence[Tensor | None] | None = None) -> "Edits":
        """The random twin: every edit with a direction drawn at random, see `Edit.twin`; same places, norms and dose.
        `covariances`: of what flows at every edit."""
        generator, given = torch.Generator().manual_seed(seed), covariances or [None] * len(self.edits)
        edits = tuple(edit.twin(generator, c) for edit, c in zip(self.edits, given, strict=True))
        return replace(self, edits=edits, method=f"random twin of {self.method}", confounds={})

    def check(self, subject: Subject) -> None:
        """Raises as `Edit.check`."""
        for edit in self.edits:
            edit.check(subject)

    def save(self, folder: str | Path, subject: Subject) -> Path:
        """Write edit.json and, where there are tensors, weights.safetensors; see `saving.save_edits`."""
        from isotrace.steering.saving import save_edits

        return save_edits(self, folder, subject)

    @classmethod
    def load(cls, folder: str | Path, subject: Subject, dictionaries: Iterable[Any] = ()) -> "Edits":
        """Raises InputError for a damaged folder, another subject than theirs, or a dictionary that was not given."""
        from isotrace.steering.saving import load_edits

        return load_edits(folder, subject, dictionaries)

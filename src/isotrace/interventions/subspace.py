"""A subspace of the tensor at a hookpoint, one per layer, as a mediator."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions.components import Components, Edit, Layers, register
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.subject import Subject


@register
@dataclass(frozen=True, eq=False)
class Subspaces(Components):
    """`bases` maps hookpoint → V `[d, r]` with orthonormal columns; a layer of the mediator is an entry, in the
    order in which the subject computes them. The activation is x V, and an edit adds (c′ − c) Vᵀ."""

    name: ClassVar[str] = "subspace"
    bases: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for site, basis in self.bases.items():
            deviation = (basis.T @ basis - torch.eye(basis.shape[1]).to(basis)).abs().max()
            if not deviation <= 1e-4:  # not for NaN either
                raise InputError(f"the basis at {site} is not orthonormal: orthonormalise it (torch.linalg.qr).")

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return tuple((1, basis.shape[1]) for basis in self.bases.values())

    @contextmanager
    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> Iterator[None]:
        def change(x: Tensor, layer: int, basis: Tensor) -> Tensor:
            values = (x @ basis)[..., None, :]
            new = edit(layer, values)
            return x if new is values else x + (new - values)[..., 0, :] @ basis.T

        edits = {
            site: lambda x, layer=layer, basis=basis: change(x, layer, basis)
            for layer, (site, basis) in enumerate(self.bases.items())
        }
        with hookpoints_edited(subject, edits):
            yield

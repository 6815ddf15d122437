"""Directions: at unit norm, drawn at random alike or inside a covariance."""

import torch
from torch import Tensor

from isotrace.base.errors import InputError


def unit(direction: Tensor) -> Tensor:
    """At unit norm; of `[tokens, components, width]` at unit mean square norm. Raises InputError for one of norm 0."""
    norm = float(direction.norm()) / (len(direction) if direction.dim() == 3 else 1) ** 0.5
    if not norm > 0:
        raise InputError("a direction of norm 0 points nowhere: the two sides do not differ there.")
    return direction / norm


def drawn(like: Tensor, generator: torch.Generator, covariance: Tensor | None) -> Tensor:
    """A random direction with the shape and, position by position, the norm of `like`."""
    noise = torch.randn(*like.shape[:-2], like.shape[-2:].numel(), generator=generator)
    if covariance is not None:
        values, vectors = torch.linalg.eigh(covariance.detach().double().cpu())
        noise = noise @ (vectors * values.clamp(min=0).sqrt()).T.float()
    norms = noise.norm(dim=-1, keepdim=True)
    return (noise / norms * like.flatten(-2).norm(dim=-1, keepdim=True)).view_as(like)


def covariance(rows: Tensor) -> Tensor:
    """`[d, d]` of `[tokens, d]`, of what flows, for twins inside it; float64."""
    centred = rows.double() - rows.double().mean(0)
    return centred.T @ centred / max(1, len(rows) - 1)

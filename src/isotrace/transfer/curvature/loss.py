"""A loss as a function of one vector of parameters, summed over fixed parts of its data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from isotrace.base.errors import InputError

Part = Callable[[Tensor], Tensor]
"""θ `[P]` → a part of the loss, a scalar, twice differentiable."""
Draw = Callable[[Tensor, torch.Generator], Tensor]
"""(θ, generator) → a scalar whose gradient g has E[g gᵀ] = the Gauss–Newton matrix of the part, see `Loss`."""


@dataclass(frozen=True)
class Block:
    """A parameter's place in the vector. `outputs`: the dimension of a matrix that counts what it writes."""

    name: str
    shape: tuple[int, ...]
    start: int
    outputs: int = 0

    @property
    def size(self) -> int:
        return prod(self.shape)

    def of(self, vector: Tensor) -> Tensor:
        """View `[…, *shape]` of `vector […, P]`."""
        return vector[..., self.start : self.start + self.size].unflatten(-1, self.shape or (1,))


@dataclass(frozen=True, eq=False)
class Loss:
    """L(θ) = Σ parts(θ), the mean over `n_examples` examples, at the parameters `at` `[P]`.

    `parts` are batches that never change, so that L is one function and its curvature exact. `draws`: of every part
    the labels the model itself would give, for Gauss–Newton and Fisher; empty where the loss knows no labels.
    `left_out`: parameters on which L does not depend, and which are not in `at`.
    """

    name: str
    at: Tensor
    blocks: tuple[Block, ...]
    parts: tuple[Part, ...]
    n_examples: int
    draws: tuple[Draw, ...] = ()
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.at.ndim != 1 or sum(block.size for block in self.blocks) != len(self.at):
            raise ValueError(f"blocks of {[b.shape for b in self.blocks]} do not fill a vector {[*self.at.shape]}")


def laid_out(shapes: Sequence[tuple[str, tuple[int, ...], int]]) -> tuple[Block, ...]:
    """Blocks one behind the other from (name, shape, dimension of outputs)."""
    blocks, start = [], 0
    for name, shape, outputs in shapes:
        blocks.append(Block(name, tuple(shape), start, outputs))
        start += blocks[-1].size
    return tuple(blocks)


def loss_of(function: Part, *parameters: Tensor, name: str = "loss", n_examples: int = 1) -> Loss:
    """A loss of one part from `function(θ)`; θ holds the `parameters` one behind the other."""
    blocks = laid_out([(f"parameter {i}", (*p.shape,), 0) for i, p in enumerate(parameters)])
    return Loss(name, torch.cat([p.detach().flatten() for p in parameters]), blocks, (function,), n_examples)


class View:
    """`loss` as measures see it: values, gradients and products with its Hessian H, counted.

    `scale [P]`: products are those of S H S, S = diag(scale), the Hessian in parameters measured in units of scale;
    only `products` knows of it. `other [P]`: second parameters, for measures between two models.
    """

    def __init__(self, loss: Loss, other: Tensor | None = None, scale: Tensor | None = None) -> None:
        if other is not None and other.shape != loss.at.shape:
            raise InputError(f"the other model has {len(other)} parameters, {loss.name} has {len(loss.at)}.")
        self.loss, self.other, self.scale = loss, other, scale
        self.n_values = self.n_gradients = self.n_products = 0

    def scaled(self, scale: Tensor) -> "View":
        return View(self.loss, self.other, scale)

    def counted(self, view: "View") -> None:
        """What another view has computed counts here too."""
        self.n_values += view.n_values
        self.n_gradients += view.n_gradients
        self.n_products += view.n_products

    @property
    def size(self) -> int:
        return len(self.loss.at)

    @torch.no_grad()
    def value(self, theta: Tensor) -> float:
        self.n_values += 1
        return sum(float(part(theta)) for part in self.loss.parts)

    def gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """(L, ∂L/∂θ `[P]`) at `theta`."""
        self.n_gradients += 1
        return summed_gradient(self.loss.parts, theta)

    def products(self, vectors: Tensor) -> Tensor:
        """H v `[k, P]` for `vectors [k, P]` at the loss's own parameters: ∂⟨∂L/∂θ, v⟩/∂θ, backward through backward
        (Pearlmutter 1994, by reverse mode both times); the first is shared by all vectors."""
        self.n_products += len(vectors)
        scale = 1 if self.scale is None else self.scale
        vectors, total = vectors * scale, torch.zeros_like(vectors)
        theta = self.loss.at.detach().requires_grad_()
        for part in self.loss.parts:
            (gradient,) = torch.autograd.grad(part(theta), theta, create_graph=True)
            if not gradient.requires_grad:
                continue  # the part is affine in θ
            for i, vector in enumerate(vectors):
                keep = i + 1 < len(vectors)
                total[i] += torch.autograd.grad(gradient, theta, vector, retain_graph=keep, materialize_grads=True)[0]
        return total * scale

    def product(self, vector: Tensor) -> Tensor:
        return self.products(vector[None])[0]


def summed_gradient(parts: Sequence[Part], theta: Tensor) -> tuple[float, Tensor]:
    """(Σ, its gradient `[P]`) of `parts` at `theta`."""
    theta = theta.detach().requires_grad_()
    value, total = 0.0, torch.zeros_like(theta)
    for part in parts:
        found = part(theta)
        value += float(found.detach())
        total += torch.autograd.grad(found, theta, materialize_grads=True)[0]
    return value, total


def generator_for(loss: Loss, seed: int) -> torch.Generator:
    return torch.Generator(loss.at.device).manual_seed(seed)


def signs(n: int, loss: Loss, generator: torch.Generator) -> Tensor:
    """`[n, P]` of ±1 (Rademacher)."""
    drawn = torch.randint(0, 2, (n, len(loss.at)), generator=generator, device=loss.at.device)
    return (2 * drawn - 1).to(loss.at.dtype)


def normal(n: int, loss: Loss, generator: torch.Generator) -> Tensor:
    """`[n, P]` standard normal."""
    return torch.randn(n, len(loss.at), generator=generator, device=loss.at.device, dtype=loss.at.dtype)

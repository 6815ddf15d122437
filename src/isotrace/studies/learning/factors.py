"""Three factors learned together: the closed form of a drop that waits for the last of several sub-circuits.

L = ½ mean (a*⊗b*⊗c* − a⊗b⊗c)², by gradient descent with a step of 1. Each factor's gradient is scaled by the overlap
of the other two with what they should be, so that all three wait for one another: a plateau, then a sharp drop. A
factor clamped to its final state does not keep the others waiting. After Singh et al. 2024 (arXiv:2404.07129).
"""

from collections.abc import Collection

import torch

DIM, STEP, REACHED = 20, 1.0, 0.1
"""Entries of a factor; size of a step; the share of the first loss that counts as learned."""
LIMIT = 5_000


def loss_of(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Of factors `[3, DIM]`, without writing the products out: ‖a⊗b⊗c‖² is the product of the squared norms."""
    parts = (wanted.square().sum(1).prod(), found.square().sum(1).prod(), (wanted * found).sum(1).prod())
    return (parts[0] + parts[1] - 2 * parts[2]) / (2 * found.shape[1] ** 3)


def steps_until_learned(clamped: Collection[int], seed: int, limit: int = LIMIT) -> int | None:
    """Steps until the loss is `REACHED` of what it is at first, with the factors `clamped` at their final state from
    the start; None where `limit` steps do not do. Entries of the wanted factors, and of the first guess, are standard
    normal."""
    generator = torch.Generator().manual_seed(seed)
    wanted, found = (torch.stack([torch.randn(DIM, generator=generator) for _ in range(3)]).double() for _ in range(2))
    free = torch.tensor([[float(i not in clamped)] for i in range(3)], dtype=torch.float64)
    found = torch.where(free > 0, found, wanted).requires_grad_(True)
    first = None
    for step in range(limit):
        loss = loss_of(wanted, found)
        value = loss.item()
        first = value if first is None else first
        if value <= REACHED * first:
            return step
        with torch.no_grad():
            found -= STEP * free * torch.autograd.grad(loss, found)[0]
    return None

"""A function learned by a small net from the tokens around, so that nobody wrote its definition down."""

import numpy as np
import torch
from torch import Tensor, nn

from isotrace.annotation.benchmark.ground import Ground

AROUND, WIDTH, STEPS, ROWS, RATE = 3, 32, 300, 256, 0.02
"""Tokens on either side, hidden units, and of the training: steps, tokens of a step, Adam's rate."""


class WindowNet(nn.Module):
    """Tokens `[n, 2 · AROUND + 1]` as numbers → logit `[n]`: one hidden layer over the texts of the tokens around."""

    def __init__(self, n_texts: int) -> None:
        super().__init__()
        self.n_texts = n_texts
        self.place = nn.EmbeddingBag((2 * AROUND + 1) * n_texts, WIDTH, mode="sum")
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, window: Tensor) -> Tensor:
        at = window + self.n_texts * torch.arange(window.shape[1])
        return self.out(torch.relu(self.place(at)))[:, 0]


def windows(ground: Ground, known: np.ndarray) -> Tensor:
    """int64 `[tokens, 2 · AROUND + 1]`: number of each text around in `known` (ascending), or its length for one that
    is not there, and for what lies beyond the sequence."""
    texts = ground.texts.astype(str)
    number = np.minimum(np.searchsorted(known, texts), len(known) - 1)
    number = np.where(known[number] == texts, number, len(known))
    ptr = ground.table.sequence_ptr
    owner = ground.table.sequence_of
    columns = []
    for step in range(-AROUND, AROUND + 1):
        at = np.arange(len(number)) + step
        inside = (at >= ptr[:-1][owner]) & (at < ptr[1:][owner])
        columns.append(np.where(inside, number[np.clip(at, 0, len(number) - 1)], len(known)))
    return torch.from_numpy(np.stack(columns, 1))


def fitted(ground: Ground, values: np.ndarray, part: np.ndarray, seed: int):
    """A net fitted to where `values [tokens]` > 0 on the tokens `part` (bool `[tokens]`): a function `Ground` → float64
    `[tokens]` of by how much its logit is above 0."""
    known = np.unique(ground.texts.astype(str))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = WindowNet(len(known) + 1)
    rows = torch.from_numpy(np.flatnonzero(part & ~ground.special))
    x, y = windows(ground, known)[rows], torch.from_numpy(values > 0)[rows].float()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(STEPS):
        at = torch.randint(len(x), (ROWS,), generator=generator)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(net(x[at]), y[at]).backward()
        optimizer.step()

    def activation(other: Ground) -> np.ndarray:
        with torch.no_grad():
            return torch.relu(net(windows(other, known))).double().numpy()

    return activation

"""In-context linear regression with continuous inputs, as a subject whose attention, contributions and gradients are
known in closed form (METHODS_BASES §14).

A sequence is L pairs (x_l, y_l) and a query x_q. Two heads have the key–query product ±γ x_q·x_l and move ±μ y_l:

    ŷ = μ Σ_l (p⁺_l − p⁻_l) y_l,  p± = softmax(±γ x_q·x_l)  →  2μγ/L Σ_l y_l (x_l − x̄)·x_q   for small γ

which is a step of gradient descent on centred covariates. What is written into the stream in place of embeddings has
one length at every token, so that the norm passes it on unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from isotrace.discovery.method import Problem
from isotrace.interventions import Heads
from isotrace.studies.worlds.planted_weights import LENGTH, SIGMA, D, Weights
from isotrace.subjects.dispatch import forwards_replaced
from isotrace.subjects.subject import Batch, Subject

APART = 60.0
"""What the logit of a pair is above that of every other token, to the query."""


@dataclass(frozen=True)
class Tasks:
    """`x [n, L, d]`, `y [n, L]`, `query [n, d]`, and `target [n]` = w·x_q, without noise."""

    x: Tensor
    y: Tensor
    query: Tensor
    target: Tensor

    def logits(self) -> Tensor:
        """x_q·x_l `[n, L]`."""
        return torch.einsum("nld,nd->nl", self.x, self.query)

    def patterns(self, gamma: float) -> tuple[Tensor, Tensor]:
        """(p⁺, p⁻), `[n, L]` each."""
        return (gamma * self.logits()).softmax(-1), (-gamma * self.logits()).softmax(-1)

    def contributions(self, gamma: float, mu: float) -> Tensor:
        """Of each pair to ŷ, `[n, L]`."""
        positive, negative = self.patterns(gamma)
        return mu * (positive - negative) * self.y

    def query_gradient(self, gamma: float, mu: float) -> Tensor:
        """∂ŷ/∂x_q `[n, d]` = μγ (Cov⁺(x, y) + Cov⁻(x, y)), covariances under p⁺ and p⁻."""
        total = torch.zeros_like(self.query)
        for p in self.patterns(gamma):
            centred = self.y - (p * self.y).sum(-1, keepdim=True)
            total += torch.einsum("nl,nl,nld->nd", p, centred, self.x)
        return mu * gamma * total

    def step(self) -> Tensor:
        """1/L Σ y_l (x_l − x̄)·x_q `[n]`."""
        return torch.einsum("nl,nld,nd->n", self.y, self.x - self.x.mean(1, keepdim=True), self.query) / self.y.shape[1]

    def ridge(self, penalty: float) -> Tensor:
        """Prediction `[n]` of ridge regression; the Bayes rule where `penalty` is variance of noise × d."""
        gram = self.x.mT @ self.x + penalty * torch.eye(self.x.shape[2], dtype=self.x.dtype, device=self.x.device)
        weights = torch.linalg.solve(gram, torch.einsum("nld,nl->nd", self.x, self.y))
        return (weights * self.query).sum(-1)


def tasks(n: int, seed: int, *, d: int = 5, length: int = 40, noise: float = 0.1) -> Tasks:
    """x and x_q standard normal, w normal of variance 1/d, labels with noise of that sd."""
    rng = torch.Generator().manual_seed(seed)
    x, query, w = (torch.randn(*shape, generator=rng) for shape in ((n, length, d), (n, d), (n, d)))
    w = w / d**0.5
    y = torch.einsum("nld,nd->nl", x, w) + noise * torch.randn(n, length, generator=rng)
    return Tasks(x, y, query, (w * query).sum(-1))


def scaled_error(predicted: Tensor, target: Tensor) -> float:
    """Mean squared error at the scale of `predicted` that makes it smallest."""
    scale = (predicted * target).sum() / (predicted**2).sum()
    return float(((scale * predicted - target) ** 2).mean())


@dataclass(frozen=True)
class Regression:
    """`subject`: heads 0.0 (+γ, +μ) and 0.1 (−γ, −μ). Everything else in it is idle."""

    subject: Subject
    gamma: float
    mu: float
    directions: dict[str, Tensor]

    def batch(self, n: int, length: int) -> Batch:
        """Tokens that only hold the places: `<cls>`, a place for each pair, the query's, `<eos>`."""
        return self.subject.tokenize(["C" * (length + 1)] * n)

    def stream(self, tasks: Tasks) -> Tensor:
        """What enters the first block `[n, L + 3, d_model]`; differentiable in `tasks`."""
        n, length, d = tasks.x.shape
        stream = torch.zeros(n, length + 3, D, dtype=tasks.x.dtype, device=tasks.x.device)
        of = {name: direction.to(stream) for name, direction in self.directions.items()}
        axes = torch.stack([of[f"x {i}"] for i in range(d)])
        pairs = tasks.x @ axes + tasks.y[..., None] * of["label"] + LENGTH * of["pair"]
        query = tasks.query @ axes + LENGTH * of["query"]
        stream = torch.cat([stream[:, :1], pairs, query[:, None], stream[:, -1:]], 1)
        rest = SIGMA**2 * D - (stream**2).sum(-1, keepdim=True)
        return stream + rest.sqrt() * of["anchor"]

    @contextmanager
    def given(self, stream: Tensor) -> Iterator[None]:
        """The subject reads `stream` in place of its embeddings, over and over in a batch of several copies."""
        word, *others = (embedding.module for embedding in self.subject.embeddings)

        def written(ids: Tensor, *_, **__) -> Tensor:
            return stream.repeat(len(ids) // len(stream), 1, 1)

        nothing = {module: lambda *_, **__: stream.new_zeros(()) for module in others}
        with forwards_replaced({word: written, **nothing}):
            yield

    def metric(self, batch: Batch, final: Tensor) -> Tensor:
        """ŷ `[n]`, read at the query."""
        return final[:, -2] @ self.directions["answer"].to(final)

    def problem(self, tasks: Tasks) -> Problem:
        """Heads against nothing written; run methods within `given(stream(tasks))`."""
        n, length, _ = tasks.x.shape
        none = tuple(torch.zeros(size) for size in Heads().sizes(self.subject))
        return Problem(self.subject, Heads(), self.batch(n, length), self.metric, none)


def regression(folder: Path, gamma: float, mu: float, *, d: int = 5, length: int = 40) -> Regression:
    axes = [f"x {i}" for i in range(d)]
    w = Weights([*axes, "label", "pair", "query", "answer"], positions=length + 3)
    for sign in (1, -1):
        match = [(axis, axis, sign * gamma * LENGTH**2) for axis in axes]
        w.head(0, [*match, ("query", "pair", APART)], [("label", "answer", sign * mu)])
    directions = {name: w[name] for name in ("anchor", *axes, "label", "pair", "query", "answer")}
    return Regression(w.load(folder), gamma, mu, directions)

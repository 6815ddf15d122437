"""What the residual path alone carries to the logits: direct logit attribution, and the logit lens.

1. record   one pass: what embeddings, heads, cross-attention and MLPs write, σ of every norm, the secant gate f(z)/z
            of the head's pointwise function
2. hold     the same modules run, but nothing is computed from the stream: all writers give what they gave, norms
            divide by the σ they had, the head's gate is fixed (METHODS §4)
3. read     the metric is then affine in what is written: gradient × (z − z′) is the direct effect of a node exactly,
            and contributions of all writers and a constant add up to the metric

Behind a final norm (pre-norm families) the path is the sum itself; in post-norm families it runs through every later
norm, each with its σ fixed. Effects by way of later heads and MLPs are not in it: see activation patching for those.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import Features
from isotrace.discovery.gradients import first_order, gradients
from isotrace.discovery.method import Metric, Problem, Scores, method
from isotrace.subjects.dispatch import Site, forwards_replaced, hookpoints_edited, overlaid
from isotrace.subjects.families import LAYER_NORM, NormKind
from isotrace.subjects.frozen import denominator, with_denominator
from isotrace.subjects.subject import Batch, Subject

AFFINE_TOLERANCE = 1e-4
"""Largest deviation from an affine function, relative to the size of what is summed, put down to float32."""


@dataclass(frozen=True)
class Contributions:
    """What each writer adds to the metric through the residual path, `[batch, tokens]` each unless said otherwise.

    embeddings: as `Subject.embeddings` orders them. heads `[batch, tokens, heads]` and mlps: per layer. cross: outputs
    of cross-attention, per decoder layer, as a whole. constant `[batch]`: biases that no writer brings. All add up to
    `metric [batch]`; `error` is by how much they do not.
    """

    embeddings: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]
    cross: tuple[Tensor, ...]
    mlps: tuple[Tensor, ...]
    constant: Tensor
    metric: Tensor

    def error(self) -> Tensor:
        """`[batch]`: metric − constant − all contributions."""
        parts = (*self.embeddings, *self.heads, *self.cross, *self.mlps)
        return self.metric - self.constant - sum(part.flatten(1).sum(1) for part in parts)


@dataclass(frozen=True)
class _HeadCall:
    """One call of the head: the gate of its pointwise function and σ of its norm."""

    gate: Tensor
    sigma: Tensor


class ResidualPath:
    """`subject` on `batch`, held; see the module. Raises SubjectError where `metric` is not affine in the final hidden
    state once the head is held: then its parts do not add up to it."""

    @torch.no_grad()
    def __init__(self, subject: Subject, batch: Batch, metric: Metric) -> None:
        self.subject, self.batch, self.measure = subject, batch, metric
        self.kind: NormKind = subject.family.norm
        self.cross = _cross_attentions(subject)
        self.sigma: dict[nn.Module, Tensor] = {}
        self.written: dict[str, Tensor] = {}
        keep = lambda module, args: self.sigma.__setitem__(module, denominator(args[0], module, self.kind))  # noqa: E731
        norms = overlaid((norm, Site(before=(keep,))) for norm in subject.norms.values())
        with norms, self._writers(lambda name, value: self.written.setdefault(name, value)):
            self.final = subject.hidden(batch.ids, batch.mask)
        self.head_calls: list[_HeadCall] = []
        with self._head_recorded():
            self.value = metric(batch, self.final)
        self._check_affine()

    @contextmanager
    def _writers(self, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Context in which `change(name, value)` sees and replaces what each writer gives. Heads and MLPs are met where
        their last linear map reads, so that mediators finer than a layer can still be edited behind."""
        sites = [f"layers.{i}.{kind}" for i in range(self.subject.n_layers) for kind in ("head_out", "neuron")]
        layers = hookpoints_edited(self.subject, {site: partial(change, site) for site in sites})
        outputs = [(f"embeddings.{i}", e.module) for i, e in enumerate(self.subject.embeddings)]
        others: list[tuple[nn.Module, Site]] = []
        for name, module in outputs + [(f"cross.{i}", module) for i, module in enumerate(self.cross)]:

            def leave(_: nn.Module, args: Any, output: Any, name: str = name) -> Any:
                whole = output if isinstance(output, Tensor) else output[0]
                # position embeddings are looked up once for the whole batch
                whole = whole.expand(len(self.batch.ids), *whole.shape[-2:])
                new = change(name, whole)
                return new if isinstance(output, Tensor) else (new, *output[1:])

            others.append((module, Site(after=(leave,))))
        with layers, overlaid(others):
            yield

    @contextmanager
    def held(self, change: Callable[[str, Tensor], Tensor] = lambda _, value: value) -> Iterator[None]:
        """Within the context the subject computes from what its writers gave, or from what `change(writer, that)`
        makes of it; norms and the head are fixed. The batch must have the rows of `batch`."""
        norms = {
            norm: lambda x, norm=norm: with_denominator(x, norm, self.sigma[norm], self.kind)
            for norm in self.subject.norms.values()
        }
        writers = self._writers(lambda name, _: change(name, self.written[name]))
        with writers, forwards_replaced(norms), self._head_held():
            yield

    def run(self, change: Callable[[str, Tensor], Tensor] = lambda _, value: value) -> Tensor:
        """The metric `[batch]` on the held subject."""
        with self.held(change):
            return self.measure(self.batch, self.subject.hidden(self.batch.ids, self.batch.mask))

    @contextmanager
    def _head_recorded(self) -> Iterator[None]:
        family, stored = self.subject.family, {}
        sites: list[tuple[nn.Module, Site]] = []
        if family.head_dense is not None and family.head_norm is not None:
            dense, norm = self.subject.module(family.head_dense), self.subject.module(family.head_norm)

            def keep(_: nn.Module, args: Any, output: Tensor) -> None:
                stored["z"] = output

            def finish(module: nn.Module, args: Any) -> None:
                z, f = stored["z"], args[0]
                gate = torch.where(z == 0, torch.zeros_like(z), f / torch.where(z == 0, torch.ones_like(z), z))
                self.head_calls.append(_HeadCall(gate, denominator(f, module, LAYER_NORM)))

            sites = [(dense, Site(after=(keep,))), (norm, Site(before=(finish,)))]
        with overlaid(sites):
            yield

    @contextmanager
    def _head_held(self) -> Iterator[None]:
        """The metric calls the head as often, and on as many places, as when it was recorded."""
        if not self.head_calls:
            yield
            return
        family, stored, calls = self.subject.family, {}, [0]
        dense = self.subject.module(cast(str, family.head_dense))
        norm = self.subject.module(cast(str, family.head_norm))

        def keep(_: nn.Module, args: Any, output: Tensor) -> None:
            stored["z"] = output

        def gated(_: Tensor) -> Tensor:
            call = self.head_calls[calls[0] % len(self.head_calls)]
            calls[0] += 1
            return with_denominator(stored["z"] * call.gate, norm, call.sigma, LAYER_NORM)

        with overlaid([(dense, Site(after=(keep,))), (norm, Site(forward=gated))]):
            yield

    def _check_affine(self) -> None:
        """M(½ a + ½ b) against ½ M(a) + ½ M(b) far from the input, where curvature shows."""
        noise = torch.randn(self.final.shape, generator=torch.Generator().manual_seed(0)).to(self.final)
        other = -self.final + noise * self.final.std()
        with self._head_held():
            ends = [self.measure(self.batch, x) for x in (self.final, other)]
            middle = self.measure(self.batch, (self.final + other) / 2)
        size = ends[0].abs() + ends[1].abs() + 1e-6
        if not bool((((ends[0] + ends[1]) / 2 - middle).abs() <= AFFINE_TOLERANCE * size).all()):
            raise SubjectError(
                "the metric is not affine in the logits, so no contributions add up to it: take a logit, a difference "
                "of logits or a probe in place of a probability or a loss."
            )


def _cross_attentions(subject: Subject) -> list[nn.Module]:
    """Modules whose output (the first, of several) cross-attention adds to the stream."""
    blocks = subject.family.blocks(*subject.stack_sizes)
    return [subject.module(stack.path(i, path)) for stack, i in blocks for path in stack.attention[1:]]


def direct_contributions(subject: Subject, batch: Batch, metric: Metric) -> Contributions:
    """What every writer adds to the metric through the residual path, exactly. Raises SubjectError as `ResidualPath`.

    In an encoder–decoder what the encoder writes has none: it reaches the logits through cross-attention only."""
    path = ResidualPath(subject, batch, metric)
    leaves = {name: torch.zeros_like(value).requires_grad_(True) for name, value in path.written.items()}
    with torch.enable_grad():
        total = path.run(lambda name, value: value + leaves[name]).sum()
    found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
    slopes = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(leaves.items(), found, strict=True)}
    parts = {name: slopes[name] * value for name, value in path.written.items()}
    with torch.no_grad():
        constant = path.run(lambda _, value: torch.zeros_like(value))
    heads = [parts[f"layers.{i}.head_out"].unflatten(-1, (subject.n_heads(i), -1)) for i in range(subject.n_layers)]
    return Contributions(
        tuple(parts[f"embeddings.{i}"].sum(-1) for i in range(len(subject.embeddings))),
        tuple(part.sum(-1) for part in heads),
        tuple(parts[f"cross.{i}"].sum(-1) for i in range(len(path.cross))),
        tuple(parts[f"layers.{i}.neuron"].sum(-1) for i in range(subject.n_layers)),
        constant,
        path.value,
    )


def _refuse(problem: Problem) -> str | None:
    if isinstance(problem.components, Features) and problem.components.errors == "drop":
        return "features without errors are computed from other features: give Features(dictionary, errors='keep')"
    try:
        ResidualPath(problem.subject, problem.batch, problem.metric)
    except SubjectError as error:
        return str(error).rstrip(".")
    return None


@method("direct_logit_attribution", refuse=_refuse)
def direct_logit_attribution(problem: Problem) -> Scores:
    """(z − z′) · the direct path of each node to the metric. Of residual positions it is what the stream there holds,
    so these do not add up over layers."""
    with ResidualPath(problem.subject, problem.batch, problem.metric).held():
        clean, slopes = gradients(problem)
    return Scores(first_order(clean, problem.reference, slopes), 4.0)


@dataclass(frozen=True)
class LogitLens:
    """`logits [n_layers + 1, batch, places, vocabulary]`: in front of the first layer of the stream that the head
    reads, and behind each; the last row is what the subject predicts. `layers`: the layer each row stands behind, the
    first being one below the first layer.

    `outer_norm`: True if a norm stands between the last layer and the head, which every row then passes. False in
    post-norm families, where each layer ends in a norm of its own: the head then reads a stream scaled and shifted by
    weights it was not trained behind, so rows but the last compare layers only as far as these norms are alike.
    """

    layers: tuple[int, ...]
    logits: Tensor
    outer_norm: bool


@torch.no_grad()
def logit_lens(subject: Subject, batch: Batch, places: Sequence[int]) -> LogitLens:
    """The head on the residual stream at `places` (positions of the final hidden state). Raises SubjectError without
    a head, InputError for a place the batch does not have.

    Whatever lies behind the last layer is applied by running it, so no norm is left out; in an encoder–decoder the
    stream is the decoder's."""
    width = batch.ids.shape[1]
    if not subject.has_head:
        raise SubjectError(f"{subject.source} has no language-model head, so its stream has no logits: use a probe.")
    if not places or not all(0 <= place < width for place in places):
        raise InputError(f"no such places {list(places)}: this batch has positions 0 to {width - 1}.")
    layers = range(subject.n_layers - subject.stack_sizes[-1], subject.n_layers)
    first, last = f"layers.{layers[0]}.resid_pre", f"layers.{layers[-1]}.resid_post"
    sites = [first, *(f"layers.{layer}.resid_post" for layer in layers)]
    run = subject.run(batch, capture=sites, logits=False)
    rows = []
    for site in sites:
        with hookpoints_edited(subject, {last: lambda _, site=site: run.captured[site]}):
            rows.append(subject.head(subject.hidden(batch.ids, batch.mask)[:, list(places)]))
    outer = not torch.equal(run.final, run.captured[last])
    return LogitLens((layers[0] - 1, *layers), torch.stack(rows), outer)

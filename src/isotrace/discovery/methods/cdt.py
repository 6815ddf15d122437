"""CD-T: what a node contributes is followed forward as a part of every activation (Hsu et al. 2025, "Efficient
automated circuit discovery in transformers using contextual decomposition").

Every activation T is split in the part β that comes from the source and the rest γ = T − β; β starts at the source as
z − z′ and is zero elsewhere. One pass runs T and the β of many sources as rows of a batch through the subject's own
modules:

linear map    Wβ; the bias is shared by |Wβ| : |Wγ|, element by element (`share_bias`), or left to γ
norm          a linear map once σ is that of T; so the bias is shared too
attention     the pattern is that of T
MLP           ½ (f(β) + f(T) − f(γ)) of the function between its linear maps, where γ has rows of its own; a gated
              MLP's f(u, v) is taken whole, so that β's part is its Shapley value
metric        its slope at the clean final state times β there; a head in it has the slopes of `relp.propagated`

γ and T differ by β at every hookpoint by construction. A pass costs as much per source as exact patching does; it
gives a source's part in *every* later activation at once, see `cdt_edges`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from isotrace.base.errors import SubjectError
from isotrace.dictionaries.features import Features
from isotrace.discovery.linear_rules import (
    LINEAR,
    first_maps,
    patterns_fixed,
    refuse_mlps,
)
from isotrace.discovery.method import Problem, Scores, method
from isotrace.discovery.methods.patching import BATCH_TOKENS, all_nodes
from isotrace.discovery.methods.relp import propagated
from isotrace.interventions.components import Values
from isotrace.subjects.dispatch import Site, hookpoints_edited, overlaid
from isotrace.subjects.frozen import denominator, scaled
from isotrace.subjects.subject import Subject


def refuse(problem: Problem) -> str | None:
    components = problem.components
    if isinstance(components, Features) and (components.errors == "drop" or components.teacher is not None):
        return "β is not defined through a dictionary's encoder: use features with errors and without teacher"
    return refuse_mlps(problem)


@method("cdt", refuse=refuse)
@torch.no_grad()
def cdt(problem: Problem, *, by_position: bool = True, nodes: Tensor | None = None, share_bias: bool = True) -> Scores:
    """Of all nodes, or of `nodes [n, 3]` (layer, position, component) alone."""
    nodes = all_nodes(problem, by_position) if nodes is None else nodes
    size, width = problem.batch.ids.shape
    values = tuple(
        torch.full((size, width if by_position else 1, n), float("nan"))
        for n, _ in problem.components.sizes(problem.subject)
    )
    chunks = nodes.split(max(1, BATCH_TOKENS // (size * width) - 1))
    for chunk in chunks:
        scores = _followed(problem, chunk, share_bias, None)
        for (layer, position, component), score in zip(chunk.tolist(), scores, strict=True):
            values[layer][:, max(position, 0), component] = score
    return Scores(values, float(len(nodes) + len(chunks)))


@torch.no_grad()
def cdt_edges(problem: Problem, sources: Tensor, *, share_bias: bool = True) -> tuple[Values, Tensor]:
    """(β in every node `[n, batch, tokens, components, width]` per layer, scores `[n, batch]`) of `sources [n, 3]`
    (layer, position, component), from one pass; β is zero before the source, up to rounding, and z − z′ at it. It
    counts all paths from the source. Cost: n + 1 forward passes. Raises SubjectError where `cdt` refuses, and for
    features, whose activations are no linear function of what they read."""
    if reason := refuse(problem):
        raise SubjectError(f"cdt refuses {problem.subject.source}: {reason}.")
    if isinstance(problem.components, Features):
        raise SubjectError("features have no part β downstream: give heads, MLPs, neurons or residuals.")
    found: dict[int, Tensor] = {}
    scores = _followed(problem, sources, share_bias, found)
    return tuple(found[layer] for layer in range(len(found))), scores


def _followed(problem: Problem, sources: Tensor, share_bias: bool, store: dict[int, Tensor] | None) -> Tensor:
    """Scores `[n, batch]`; `store` receives β by layer."""
    ids, mask, size = problem.batch.ids, problem.batch.mask, len(problem.batch.ids)

    def edit(layer: int, values: Tensor) -> Tensor:
        here = torch.nonzero(sources[:, 0] == layer)[:, 0].tolist()
        values = values.clone() if here else values
        reference = problem.reference[layer].expand(size, *values.shape[1:])
        for place in here:
            _, position, component = sources[place].tolist()
            at = slice(None) if position < 0 else position
            relevant = values[size * (place + 1) : size * (place + 2)]
            relevant[:, at, component] += values[:size, at, component] - reference[:, at, component]
        if store is not None:
            store[layer] = values[size:].unflatten(0, (-1, size))
        return values

    with decomposed(problem.subject, size, share_bias), problem.components.edited(problem.subject, edit):
        final = problem.subject.hidden(ids.repeat(len(sources) + 1, 1), mask.repeat(len(sources) + 1, 1))
    with torch.enable_grad(), propagated(problem.subject):
        total = final[:size].detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(problem.metric(problem.batch, total).sum(), total)
    return (final[size:].unflatten(0, (-1, size)) * slope).sum((-2, -1))


@contextmanager
def decomposed(subject: Subject, size: int, share_bias: bool) -> Iterator[None]:
    """Within the context the first `size` rows of a pass are totals T, and the rows that follow, `size` for every
    source, parts β of them: zero where a stack begins, and from there on as the rules above have it. Only
    without gradients: outputs are changed in place."""

    def shared(total: Tensor, parts: Tensor, bias: Tensor | None) -> None:
        """Adds to Wβ `[sources, size, …]`, in place, its share of the bias."""
        if bias is None or not share_bias:
            return
        own, rest = parts.abs(), (total - bias - parts).abs_()
        parts += own.div_(rest.add_(own).clamp_(min=torch.finfo(own.dtype).tiny)).mul_(bias)

    def linear(module: nn.Module, args, output: Tensor) -> Tensor:
        if len(output) > size:  # a table of relative positions has no rows; it makes patterns, which are those of T
            parts, bias = output[size:].unflatten(0, (-1, size)), cast("Tensor | None", getattr(module, "bias", None))
            if bias is not None:
                parts -= bias
            shared(output[:size], parts, bias)
        return output

    def norm(module: nn.Module, args, output: Tensor) -> Tensor:
        sigma, parts = denominator(args[0][:size], module, kind), args[0][size:].unflatten(0, (-1, size))
        parts = scaled(parts, module, sigma, kind)
        shared(output[:size], parts, cast("Tensor | None", getattr(module, "bias", None)))
        return torch.cat([output[:size], parts.flatten(0, 1)])

    def with_rest(_, args, output: Tensor) -> Tensor:
        rest = output[:size] - output[size:].unflatten(0, (-1, size))
        return torch.cat([output, rest.flatten(0, 1)])

    def mean_of_orders(_, args) -> tuple[Tensor]:
        total, (part, rest) = args[0][:size], args[0][size:].unflatten(0, (2, -1, size))
        return (torch.cat([total, (0.5 * (part + total - rest)).flatten(0, 1)]),)

    kind = subject.family.norm
    starts = [sum(subject.stack_sizes[:i]) for i in range(len(subject.stack_sizes))]
    empty = {f"layers.{i}.resid_pre": lambda x: torch.cat([x[:size], torch.zeros_like(x[size:])]) for i in starts}
    modules = subject.model.base_model.modules()
    sites = [(module, Site(after=(linear,))) for module in modules if isinstance(module, LINEAR)]
    sites += [(module, Site(after=(norm,))) for module in subject.norms.values()]
    for layer in range(subject.n_layers):
        sites += [(module, Site(after=(with_rest,))) for module in first_maps(subject, layer)]
        sites.append((subject.mlp(layer)[1], Site(before=(mean_of_orders,))))
    with patterns_fixed(subject, size), hookpoints_edited(subject, empty), overlaid(sites):
        yield

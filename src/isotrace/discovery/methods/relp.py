"""RelP: attribution patching with the gradient replaced by what layer-wise relevance propagation passes on.

1. run        the subject with every value as it is, but other gradients (`propagated`): norm denominators and
              attention patterns are constants, f(z) has the slope f(z)/z, each factor of a gated MLP takes half
2. score      (z − z′) · that gradient, as attribution patching does

Source: Jafari et al. 2025, "RelP: faithful and efficient circuit discovery via relevance patching".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from isotrace.discovery.gradients import first_order, gradients
from isotrace.discovery.linear_rules import first_maps, patterns_fixed, refuse_mlps
from isotrace.discovery.method import Problem, Scores, method
from isotrace.subjects.dispatch import Site, overlaid
from isotrace.subjects.families import LAYER_NORM, NormKind
from isotrace.subjects.frozen import denominator, scaled
from isotrace.subjects.subject import Subject


def _passing(value: Tensor, linear: Tensor) -> Tensor:
    """The value of the one with the gradient of the other."""
    return value.detach() + (linear - linear.detach())


def _slope(value: Tensor, z: Tensor) -> Tensor:
    """value / z as a constant. At z = 0, where the value is 0 too, nothing is passed on."""
    return torch.where(z == 0, 0, value / torch.where(z == 0, 1, z)).detach()


@contextmanager
def propagated(subject: Subject) -> Iterator[None]:
    """Within the context gradients through the subject, and through its head, are those of the rules above; no value
    changes. MLPs must be as `refuse_mlps` wants them."""

    def norm(module: nn.Module, args, output: Tensor, kind: NormKind) -> Tensor:
        sigma = denominator(args[0], module, kind).detach()
        return _passing(output, scaled(args[0], module, sigma, kind))

    def keep(_, args, output: Tensor, store: list[Tensor]) -> None:
        store.append(output)

    def function(_, args, store: list[Tensor]) -> tuple[Tensor, ...]:
        value = args[0]
        if not store:  # the MLP was computed by something else, and its linear maps did not run
            return args
        parts = torch.cat(store, -1).split(value.shape[-1], -1)
        store.clear()
        return (_passing(value, torch.stack([_slope(value, z) * z for z in parts]).mean(0)),)

    family = subject.family
    places = [(first_maps(subject, layer), subject.mlp(layer)[1]) for layer in range(subject.n_layers)]
    norms = [(module, family.norm) for module in subject.norms.values()]
    if subject.has_head and family.head_dense is not None and family.head_norm is not None:
        places.append(((subject.module(family.head_dense),), subject.module(family.head_norm)))
        norms.append((places[-1][1], LAYER_NORM))
    sites = [(module, Site(after=(partial(norm, kind=kind),))) for module, kind in norms]
    for first, last in places:
        store: list[Tensor] = []
        sites += [(module, Site(after=(partial(keep, store=store),))) for module in first]
        sites.append((last, Site(before=(partial(function, store=store),))))
    with patterns_fixed(subject), overlaid(sites):
        yield


@method("relp", refuse=refuse_mlps)
def relp(problem: Problem) -> Scores:
    with propagated(problem.subject):
        clean, slopes = gradients(problem)
    return Scores(first_order(clean, problem.reference, slopes), 3.0)

"""What one output is made of in the frozen subject (METHODS §5): features of a dictionary, and what they leave over.

The frozen subject is an affine function of its MLPs' outputs. A feature contributes its activation times its write
times the gradient there, the error of a layer at a token what the dictionary did not write; both summed over all that
is written to. These are the direct edges of an attribution graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.sparsity.rule import SparseActivations
from isotrace.subjects.frozen import FrozenSubject
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target


@dataclass(frozen=True, eq=False)
class Encoded:
    """A dictionary on one sequence: `active` features of every layer `[tokens, k]`, `scales [n_layers, tokens, 1]`
    that what is written is multiplied by, `truth` and `errors [n_layers, tokens, d_out]`, what the subject writes and
    what of it the dictionary leaves over."""

    dictionary: Dictionary
    active: tuple[SparseActivations, ...]
    scales: Tensor
    truth: Tensor
    errors: Tensor


@dataclass(frozen=True, eq=False)
class Contributions:
    """To one output on one sequence. A row per active feature and token: `layer` (its place in the dictionary),
    `feature`, `activation` and `features`, what it adds to the output, signed; float64. `errors [n_layers, tokens]`.
    `nodes [n_layers, tokens]`: what all features add through the layer and token that they write to."""

    layer: np.ndarray
    feature: np.ndarray
    activation: np.ndarray
    features: np.ndarray
    errors: np.ndarray
    nodes: np.ndarray


def require_writes_of_mlps(dictionary: Dictionary, subject: Subject, name: str) -> None:
    """Raises DictionaryError for a dictionary whose features do not write where the MLPs of `subject` do, token by
    token: its errors are no part of the output then."""
    config = dictionary.config
    if config.hookpoint_out != "layers.{}.mlp_out" or is_pooled(config.reads):
        raise DictionaryError(
            f"{name} writes {config.hookpoint_out}: how much of a prediction goes through features is told of a "
            "transcoder or crosslayer that writes mlp_out."
        )
    if config.layers[-1] >= subject.n_layers or config.d_out != subject.d_model:
        raise DictionaryError(
            f"{name} covers layers {config.layers} of width {config.d_out}, {subject.source} has {subject.n_layers} of "
            f"{subject.d_model}: give a dictionary of this subject."
        )


@torch.no_grad()
def encoded(subject: Subject, dictionaries: Sequence[Dictionary], batch: Batch) -> list[Encoded]:
    """`batch` of one sequence, read once for all of them."""
    sites = {site: None for one in dictionaries for site in (*one.config.reads, *one.config.writes)}
    captured, found = subject.run(batch, capture=[*sites], logits=False).captured, []
    for one in dictionaries:
        x, y = (torch.stack([captured[site][0] for site in own]) for own in (one.config.reads, one.config.writes))
        active = [one.encode(layer, tokens) for layer, tokens in enumerate(x)]
        scales = torch.ones(*x.shape[:2], 1, device=x.device)
        if one.config.token_normalization != "none":
            scales = scales * one.standardised(x)[2]
        found.append(Encoded(one, tuple(active), scales, y, y - one.written(active, x)))
    return found


def gradients(subject: Subject, batch: Batch, targets: Sequence[Target]) -> list[Tensor]:
    """Of each target, which all read the same layers, `[subject layers, tokens, d_model]` at the output of every MLP
    of the subject frozen on the one sequence of `batch`."""
    frozen = FrozenSubject(subject, batch, targets[0].reads)
    leaves, found = frozen.sources.map(lambda x: torch.zeros_like(x).requires_grad_(True)), []
    with torch.enable_grad():
        final = frozen.replay(leaves).final
    for target in targets:
        with torch.enable_grad():
            gradient, _ = target.linear(frozen)
        own = torch.autograd.grad(final, leaves.mlp_out, gradient[None], retain_graph=True, materialize_grads=True)
        found.append(torch.cat(own))
    return found


@torch.no_grad()
def contributions(known: Encoded, gradient: Tensor) -> Contributions:
    """`gradient` as `gradients` gives it."""
    config, dictionary = known.dictionary.config, known.dictionary
    at = gradient[list(config.layers)]
    nodes = torch.zeros(at.shape[:2], dtype=torch.float64)
    rows: list[tuple[Tensor, ...]] = []
    for s, active in enumerate(known.active):
        targets = [*config.targets(s)]
        through = (at[targets] * known.scales[targets]).transpose(0, 1)  # [tokens, targets, d]
        # k features of a token are far fewer than all: rows are gathered
        added = torch.einsum("pktd,ptd->pkt", dictionary.write_vectors(s, active.indices), through)
        added = (active.values[..., None] * added).double().cpu()
        nodes[targets] += added.sum(1).T
        on = (active.values > 0).cpu()
        feature, activation = active.indices.cpu()[on], active.values.cpu()[on]
        rows.append((torch.full_like(feature, s), feature, activation.double(), added.sum(-1)[on]))
    layer, feature, activation, added = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    errors = (known.errors * at).sum(-1).double().cpu().numpy()
    return Contributions(layer.astype(np.int64), feature.astype(np.int64), activation, added, errors, nodes.numpy())

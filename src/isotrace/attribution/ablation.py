"""Ablation: components set to a reference, in the running subject and in the frozen one (METHODS §9).

In the running subject through any components, free-running: attention, norms, MLPs and the activations themselves are
recomputed on the drifting stream. Features move by what they write, so that the dictionary's error terms stay.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby, islice
from typing import Literal

import torch
from torch import Tensor

from isotrace import interventions
from isotrace.attribution.graph import Frame
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.interventions import Components, Intervention, Plan, To, Values
from isotrace.interventions.gradients import activations_and_slopes
from isotrace.interventions.where import Where
from isotrace.subjects.fast import blocks_given, blocks_recorded, fast_kernels, rows_shared
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

Ablation = Literal["mean", "zero"]
Nodes = Tensor
"""`[n, 3]` int64: (layer, position, component)."""


def feature_values(dictionary: Dictionary, ablation: Ablation) -> Values:
    """What an ablated feature is set to, `[features, 1]` per layer: its mean over the training stream, or zero."""
    mean = dictionary.mean_activation
    return tuple((mean if ablation == "mean" else torch.zeros_like(mean))[..., None])


MEMORY = 1 << 28
"""Bytes that the activations of a layer's components may take in the copies of an input that run at once."""


def fitting(chunk: int, n_tokens: int, n_components: int = 1) -> int:
    """Copies of an input to run at once: at most `chunk`, and fewer of a long one or of many components in a layer, so
    that memory stays bounded."""
    return max(1, min(chunk, 8_192 // n_tokens, MEMORY // (4 * n_tokens * n_components)))


def rounding(frame: Frame) -> float:
    """What rounding can make of the target: a unit in the last place per layer of what it sums up."""
    final = frame.frozen.actual.final[0]
    layers = 1 + frame.dictionary.config.n_layers
    return layers * torch.finfo(final.dtype).eps * float((frame.gradient * final).abs().sum())


@torch.no_grad()
def ablated(
    subject: Subject,
    components: Components,
    reference: Values,
    batch: Batch,
    target: Target,
    sets: Sequence[Nodes | Where],
    *,
    complement: bool,
    chunk: int = 24,
) -> Tensor:
    """Target value `[len(sets)]` with each set of nodes at `reference`, or, with `complement`, all nodes but these.

    `batch` holds one sequence; `reference` is `[components, width]` per layer, or what broadcasts to activations.
    """
    if not sets:
        return torch.zeros(0)
    kept = [one if isinstance(one, Where) else interventions.Nodes.of(one) for one in sets]
    # what comes before the first node of a set is as it is: such sets share a pass, which begins there
    begins = [
        0 if complement else min((components.block(subject, i) for i in one.meant or ()), default=0) for one in kept
    ]
    order = sorted(range(len(sets)), key=begins.__getitem__)
    chunk = fitting(chunk, batch.ids.shape[1], max(n for n, _ in components.sizes(subject)))
    plan = lambda one: Plan((Intervention(components, To(reference), ~one if complement else one),))  # noqa: E731
    with fast_kernels(subject):
        with blocks_recorded(subject) if any(begins) else nullcontext([]) as blocks:
            if any(begins):
                target.hidden(subject, batch)

        def hidden() -> Iterator[Tensor]:
            for part in _parts(order, begins, kept, chunk):
                begin, n = begins[part[0]], len(part)
                edited = subject.edited(plan(_Copies(tuple(kept[i] for i in part))))
                with blocks_given(subject, blocks[:begin], n), rows_shared(subject, begin), edited:
                    found = target.hidden(subject, repeated(batch, n))
                yield from found

        rows, results = hidden(), []
        while part := [*islice(rows, chunk)]:
            results.append(target.value(subject, repeated(batch, len(part)), torch.stack(part)).cpu())
    found = torch.cat(results)
    return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def repeated(batch: Batch, n: int) -> Batch:
    """`n` copies of the one sequence of `batch`."""
    return Batch(batch.ids.expand(n, -1), batch.mask.expand(n, -1), (), ())


class _Copies(interventions.Rows):
    """Before anything tells the copies apart, one row is read for all of them, see `rows_shared`."""

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        return super().mask(layer, values.expand(max(len(values), len(self.copies)), *values.shape[1:]))


def _parts(order: Sequence[int], begins: Sequence[int], sets: Sequence[Where], chunk: int) -> Iterator[list[int]]:
    """`order` in parts of at most `chunk` that run together. Sets of one node share a pass with those of their block
    alone, and begin there. What larger ones write is one sum, whose last bits depend on what else is in the pass."""
    single = all(isinstance(one, interventions.Nodes) and len(one.nodes) == 1 for one in sets)
    for _, group in groupby(order, key=begins.__getitem__) if single else [(0, order)]:
        group = [*group]
        yield from (group[at : at + chunk] for at in range(0, len(group), chunk))


def first_order(
    subject: Subject, components: Components, reference: Values, batch: Batch, target: Target, kept: Nodes | None = None
) -> tuple[Tensor, ...]:
    """By how much the target would fall were a node set to `reference`, to first order: (z − reference) · ∂M/∂z,
    `[tokens, components]` per layer, from one forward and one backward pass, all else as it is or, with `kept`, with
    everything outside `kept` at `reference`."""

    def outside(layer: int, values: Tensor) -> Tensor:
        assert kept is not None
        here = torch.zeros(values.shape[1:3], dtype=torch.bool, device=values.device)
        here[kept[kept[:, 0] == layer][:, 1:].to(values.device).unbind(1)] = True
        return torch.where(here[..., None], values, reference[layer].to(values))

    value = lambda final: target.value(subject, batch, final).sum()  # noqa: E731
    found = activations_and_slopes(subject, components, batch, value, kept if kept is None else outside, target.reads)
    changes = (
        ((values - base.to(values)) * slope).sum(-1)[0] for values, slope, base in zip(*found, reference, strict=True)
    )
    return tuple(change.cpu() for change in changes)


@torch.no_grad()
def ablate_in_frozen(frame: Frame, nodes: Nodes, ablation: Ablation, chunk: int = 32) -> Tensor:
    """Target value `[len(nodes)]` of the frozen model with each node ablated by itself.

    Attention patterns, norm denominators, error terms and the set of active features stay as on the clean
    input; active features respond linearly.
    """
    dictionary, config = frame.dictionary, frame.dictionary.config
    base = torch.stack(feature_values(dictionary, ablation))[..., 0]
    gates = (frame.active.values > 0).float()
    reads = [dictionary.W_enc[s].T[frame.active.indices[s]] for s in range(config.n_layers)]  # [tokens, k, d]
    decoders = [dictionary.write_vectors(s, frame.active.indices[s]) for s in range(config.n_layers)]
    biases = [dictionary.b_enc[s][frame.active.indices[s]] for s in range(config.n_layers)]
    results = []
    for part in nodes.split(fitting(chunk, frame.n_tokens)) if len(nodes) else ():
        outputs = [frame.errors[t] + dictionary.b_dec[t] for t in range(config.n_layers)]

        def mlp(layer: int, x: Tensor, part=part, outputs=outputs) -> Tensor:
            # [tokens, rows, k]: products per token, since every token has its own active features
            values = (x.transpose(0, 1) @ reads[layer].transpose(1, 2) + biases[layer][:, None]) * gates[layer][:, None]
            rows = torch.nonzero(part[:, 0] == layer)[:, 0]
            for row in rows.tolist():
                _, position, feature = part[row].tolist()
                slot = int(torch.nonzero(frame.active.indices[layer, position] == feature)[0, 0])
                values[position, row, slot] = base[layer, feature]
            written = values @ decoders[layer].flatten(2)
            for place, reached in enumerate(config.targets(layer)):
                d = config.d_out
                outputs[reached] = outputs[reached] + written[..., place * d : (place + 1) * d].transpose(0, 1)
            return outputs[layer].expand(len(part), -1, -1)

        expanded = frame.frozen.sources.map(lambda t, part=part: t.expand(len(part), -1, -1))
        final = frame.frozen.replay(expanded, mlp).final
        results.append(((final * frame.gradient).sum((1, 2)) + frame.constant).cpu())
    return torch.cat(results) if results else torch.zeros(0)

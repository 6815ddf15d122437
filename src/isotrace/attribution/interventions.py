"""Interventions on features, in the real subject and in the frozen one (METHODS §9).

All are *delta* interventions: Δa · W_dec is added to the true MLP output, so the error term stays. Ablating a
feature sets its activation to its mean over the training stream (`mean_activation`); `zero` is the variant.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from isotrace.attribution.graph import Frame
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

Ablation = Literal["mean", "zero"]
Nodes = Tensor
"""`[n, 3]` int64: (layer, position, feature)."""


def baseline(dictionary: Dictionary, ablation: Ablation) -> Tensor:
    """What an ablated feature is set to, `[n_layers, F]`."""
    mean = dictionary.mean_activation
    return mean if ablation == "mean" else torch.zeros_like(mean)


def fitting(chunk: int, n_tokens: int) -> int:
    """Copies of an input to run at once: at most `chunk`, and fewer of a long one, so that memory stays bounded."""
    return max(1, min(chunk, 8_192 // n_tokens))


@torch.no_grad()
def ablate_in_subject(
    subject: Subject,
    dictionary: Dictionary,
    batch: Batch,
    target: Target,
    sets: Sequence[Nodes],
    *,
    complement: bool,
    ablation: Ablation,
    chunk: int = 24,
) -> Tensor:
    """Target value `[len(sets)]` with each set of nodes ablated, or, with `complement`, everything else ablated.

    Free-running: attention, norms, MLPs and the features' activations are all recomputed on the drifting stream.
    """
    base = baseline(dictionary, ablation)
    results = []
    chunk = fitting(chunk, batch.ids.shape[1])
    for at in range(0, len(sets), chunk):
        part = sets[at : at + chunk]
        rows = len(part)
        copies = Batch(batch.ids.expand(rows, -1), batch.mask.expand(rows, -1), (), ())

        def edit(layer: int, values: Tensor, part=part) -> Tensor:
            chosen = torch.zeros(values.shape[:3], dtype=torch.bool)
            for row, nodes in enumerate(part):
                here = nodes[nodes[:, 0] == layer]
                chosen[row, here[:, 1], here[:, 2]] = True
            return torch.where((chosen ^ complement)[..., None], base[layer][:, None], values)

        with Features(dictionary).edited(subject, edit):
            final = subject.hidden(copies.ids, copies.mask)
        results.append(target.value(subject, copies, final))
    return torch.cat(results) if results else torch.zeros(0)


@torch.no_grad()
def ablate_in_frozen(frame: Frame, nodes: Nodes, ablation: Ablation, chunk: int = 32) -> Tensor:
    """Target value `[len(nodes)]` of the frozen model with each node ablated by itself.

    Attention patterns, norm denominators, error terms and the set of active features stay as on the clean
    input; active features respond linearly.
    """
    dictionary, config = frame.dictionary, frame.dictionary.config
    base = baseline(dictionary, ablation)
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
        results.append((final * frame.gradient).sum((1, 2)) + frame.constant)
    return torch.cat(results) if results else torch.zeros(0)

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
        pending: dict[int, Tensor] = {}

        def edit(layer: int, x: Tensor, y: Tensor, part=part, pending=pending) -> Tensor:
            delta, features = _deltas(dictionary, layer, x, part, base[layer], complement)
            if delta is not None:
                written = (delta @ dictionary.W_dec[layer][features]).unflatten(-1, (-1, dictionary.config.d_out))
                for slot, reached in enumerate(dictionary.config.targets(layer)):
                    pending[reached] = pending.get(reached, 0) + written[..., slot, :]
            return y + pending[layer] if layer in pending else y

        final = subject.run(copies, edit_mlp_out=edit, logits=False).final
        results.append(target.value(subject, copies, final))
    return torch.cat(results) if results else torch.zeros(0)


def _deltas(
    dictionary: Dictionary, layer: int, x: Tensor, sets: Sequence[Nodes], base: Tensor, complement: bool
) -> tuple[Tensor | None, Tensor]:
    """(Δa `[rows, tokens, n]`, the n features it concerns); None where nothing is ablated in this layer."""
    n_features = dictionary.config.n_features
    chosen = [nodes[nodes[:, 0] == layer] for nodes in sets]
    if complement:
        features = torch.arange(n_features)
    else:
        features = torch.cat([c[:, 2] for c in chosen]).unique()
        if not len(features):
            return None, features
    delta = base[features] - dictionary.encode(layer, x).dense(n_features)[..., features]
    place = torch.full((n_features,), -1)
    place[features] = torch.arange(len(features))
    mask = torch.zeros_like(delta, dtype=torch.bool)
    for row, nodes in enumerate(chosen):
        mask[row, nodes[:, 1], place[nodes[:, 2]]] = True
    return torch.where(mask ^ complement, delta, torch.zeros_like(delta)), features


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

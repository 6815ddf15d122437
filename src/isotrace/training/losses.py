"""Losses of dictionary training: pure functions of weights and a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.replacement import replaced_hidden
from isotrace.dictionaries.sparsity.rule import Encoded, SparseActivations
from isotrace.kernels import encode_at
from isotrace.kernels.topk import topk
from isotrace.subjects.subject import Batch, Subject
from isotrace.training.config import TrainingConfig
from isotrace.training.parallel import Split


@dataclass(frozen=True)
class LossOutput:
    """`total` to minimise and its parts, scalars; `fve [n_layers]`; `l0` active features per token and layer;
    `fired [n_layers, F]` bool: active on some token of the batch."""

    total: Tensor
    parts: dict[str, Tensor]
    fve: Tensor
    l0: Tensor
    fired: Tensor


def variance(y: Tensor) -> Tensor:
    """Variance per layer `[n_layers]` of y `[n_layers, tokens, d]`, over tokens and dimensions."""
    return (y - y.mean(1, keepdim=True)).square().mean((1, 2))


def reconstruction(
    dictionary: Dictionary,
    x: Tensor,
    y: Tensor,
    training: TrainingConfig,
    dead: Tensor,
    *,
    penalty: float = 0.0,
    var: Tensor | None = None,
    split: Split | None = None,
) -> LossOutput:
    """Σ_t ‖y_t − ŷ_t‖² / Var(y_t), averaged over the prefixes of a Matryoshka dictionary, plus `penalty` times the
    rule's sparsity penalty, plus the gate's own reconstruction (gated), plus the auxiliary loss of dead features.

    x, y `[n_layers, tokens, d]` normalised; dead `[n_layers, F]` bool; var `[n_layers]`, that of y by default.
    `split` is how several processes share the dictionary or the batch; by default this one has both.
    """
    split = split or Split()
    config = dictionary.config
    seen, _, deviation = dictionary.standardised(x)
    n_dead = split.counts(dead) if training.auxiliary > 0 else []
    settings = training.rule_settings(keep_h=any(n_dead))
    encoded = [dictionary.rule.encode_training(dictionary, s, seen[s], settings) for s in range(config.n_layers)]
    active = [split.chosen(e.active) if isinstance(e.active, SparseActivations) else e.active for e in encoded]
    var = variance(y) if var is None else var
    total = y.new_zeros(())
    decoded, residual, errors = dictionary.biases, y, y.new_ones(config.n_layers)
    segments = split.segments(config)
    for start, stop in segments:
        decoded = decoded + split.summed(decode(dictionary, [between(a, start, stop) for a in active], training))
        residual = y - dictionary.finish_all(decoded, x)
        errors = residual.square().mean((1, 2)) / var
        total = total + errors.sum() / len(segments)
    parts = {"reconstruction": total.detach()}
    if encoded[0].penalty is not None and penalty > 0:
        cost = torch.stack([e.penalty for e in encoded if e.penalty is not None]).sum()
        total, parts["penalty"] = total + penalty * cost, cost.detach()
    if encoded[0].gate is not None:
        gates = [e.gate @ dictionary.W_dec[s].detach() for s, e in enumerate(encoded) if e.gate is not None]
        # everything but the gates is fixed here, a skip path too
        rest = dictionary.finish_all(dictionary.biases.expand_as(y), x).detach()
        own = ((y - rest - spread(dictionary, gates) * deviation).square().mean((1, 2)) / var).sum()
        total, parts["gate"] = total + own, own.detach()
    if any(n_dead):
        # in the space decoders write to: dead features would else learn the deviations of tokens
        left = (residual / deviation).detach()
        extra = auxiliary(dictionary, seen, encoded, left, dead, training.auxiliary_k, split, n_dead)
        total, parts["auxiliary"] = total + training.auxiliary * extra, extra.detach()
    return LossOutput(total, parts, 1 - errors.detach(), *activity(active, config.n_features, split))


def between(active: SparseActivations | Tensor, start: int, stop: int) -> SparseActivations | Tensor:
    """The activations of features start … stop − 1, the others 0."""
    if isinstance(active, Tensor):
        inside = torch.zeros_like(active)
        inside[:, start:stop] = 1
        return active * inside
    inside = (active.indices >= start) & (active.indices < stop)
    return SparseActivations(active.indices, torch.where(inside, active.values, 0))


def decode(dictionary: Dictionary, active: list[SparseActivations | Tensor], training: TrainingConfig) -> Tensor:
    """Σ a W_dec `[n_layers, tokens, d_out]` without bias, by the sparse kernel where activations are sparse."""
    if isinstance(active[0], SparseActivations):
        sparse = [a for a in active if isinstance(a, SparseActivations)]
        return dictionary.decode_sparse(sparse)
    dtype = getattr(torch, training.dtype)
    products = [(a.to(dtype) @ w.to(dtype)).to(w.dtype) for a, w in zip(active, dictionary.W_dec, strict=True)]  # pyright: ignore
    return spread(dictionary, products)


def spread(dictionary: Dictionary, products: list[Tensor]) -> Tensor:
    """`[n_layers, tokens, d_out]`: what every source writes, `[tokens, n_targets · d_out]`, summed by target."""
    outputs: list[Tensor] = []
    for source, product in enumerate(products):
        for target, part in zip(
            dictionary.config.targets(source), product.split(dictionary.config.d_out, dim=-1), strict=True
        ):
            if target < len(outputs):
                outputs[target] = outputs[target] + part
            else:
                outputs.append(part)
    return torch.stack(outputs)


def auxiliary(
    dictionary: Dictionary,
    x: Tensor,
    encoded: list[Encoded],
    residual: Tensor,
    dead: Tensor,
    k: int,
    split: Split,
    n_dead: list[int],
) -> Tensor:
    """The dead features' k largest pre-activations reconstruct the residual `[n_layers, tokens, d_out]` of their own
    layer, without bias (Gao et al. 2024, eq. 7, per layer): error relative to the residual, summed over layers."""
    total = residual.new_zeros(())
    size = residual.square().mean((1, 2))
    split.mean_(size)
    for layer, one in enumerate(encoded):
        places = dead[layer].nonzero()[:, 0]
        if not n_dead[layer] or one.h is None:
            continue
        best_h, best = topk(one.h[:, places].float(), min(k, len(places)))
        chosen = torch.where(split.kept(best_h, k), places[best], -1)
        h = encode_at(x[layer], dictionary.W_enc[layer], dictionary.b_enc[layer], chosen)
        acts = torch.zeros(len(h), len(places), dtype=h.dtype, device=h.device).scatter(1, best, h.relu())
        part = split.summed(acts @ dictionary.decoder(layer, layer)[places])
        total = total + (residual[layer] - part).square().mean() / size[layer]
    return total


@torch.no_grad()
def activity(active: list[SparseActivations | Tensor], n_features: int, split: Split) -> tuple[Tensor, Tensor]:
    """(L0, fired `[n_layers, F]` bool)."""
    fired, count, tokens = [], 0, 0
    for a in active:
        on = (a if isinstance(a, Tensor) else a.values) > 0
        count, tokens = count + on.sum(), tokens + len(on)
        row = torch.zeros(n_features, dtype=torch.bool, device=on.device)
        fired.append(on.any(0) if isinstance(a, Tensor) else row.index_fill_(0, a.indices[on].long(), True))
    return split.summed(torch.as_tensor(count) / tokens), torch.stack(fired)


def free_running(subject: Subject, dictionary: Dictionary, batch: Batch, chosen: Tensor, final: Tensor) -> Tensor:
    """KL(subject ‖ replacement) on masked positions plus the squared error of the final hidden state relative to
    its variance, both with attention recomputed. `final [batch, tokens, d_model]` is the subject's own."""
    replaced = replaced_hidden(subject, dictionary, batch, "free_running")
    loss = (replaced - final).square().mean() / (final - final.mean((0, 1))).square().mean()
    if chosen.any():
        with torch.no_grad():
            reference = subject.head(final[chosen]).float().log_softmax(-1)
        predicted = subject.head(replaced[chosen]).float().log_softmax(-1)
        loss = loss + torch.nn.functional.kl_div(predicted, reference, log_target=True, reduction="batchmean")
    return loss

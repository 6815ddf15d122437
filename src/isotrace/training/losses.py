"""Losses of dictionary training: pure functions of weights and a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.dictionaries.crosslayer import CrossLayerTranscoder
from isotrace.dictionaries.replacement import replaced_hidden
from isotrace.kernels.topk import topk
from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True)
class LossOutput:
    """`total` to minimise; `fve [n_layers]`; `fired [n_layers, F]` bool: active on some token of the batch."""

    total: Tensor
    fve: Tensor
    fired: Tensor


def reconstruction(
    dictionary: CrossLayerTranscoder, x: Tensor, y: Tensor, dead: Tensor, auxiliary: float, auxiliary_k: int
) -> LossOutput:
    """Σ_t ‖y_t − ŷ_t‖² / Var(y_t) plus the auxiliary loss of dead features (METHODS §1).

    x, y `[n_layers, tokens, d]` normalised to unit variance per layer; dead `[n_layers, F]` bool. The dead
    features' auxiliary_k largest pre-activations reconstruct the detached residual of their own layer,
    without bias (Gao et al. 2024, eq. 7, per layer).
    """
    config = dictionary.config
    dense, pre = [], []
    for layer in range(config.n_layers):
        h = dictionary.preactivations(layer, x[layer])
        values, indices = topk(h, config.k)
        dense.append(torch.zeros_like(h).scatter(-1, indices, values.relu()))
        pre.append(h)
    y_hat = dictionary.decode_all(dense)
    residual = y - y_hat
    variance = (y - y.mean(1, keepdim=True)).square().mean((1, 2))
    errors = residual.square().mean((1, 2)) / variance
    total = errors.sum()
    for layer in range(config.n_layers):
        n_dead = int(dead[layer].sum())
        if n_dead:
            h = pre[layer][:, dead[layer]].relu()
            values, indices = h.topk(min(auxiliary_k, n_dead), sorted=False)
            part = torch.zeros_like(h).scatter(-1, indices, values) @ dictionary.decoder(layer, layer)[dead[layer]]
            target = residual[layer].detach()
            total = total + auxiliary * (target - part).square().mean() / target.square().mean()
    fired = torch.stack([(a > 0).any(0) for a in dense])
    return LossOutput(total, 1 - errors.detach(), fired)


def free_running(
    subject: Subject, dictionary: CrossLayerTranscoder, batch: Batch, chosen: Tensor, final: Tensor
) -> Tensor:
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

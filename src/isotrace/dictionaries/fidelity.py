"""How faithful the replacement model is on held-out sequences (METHODS §3).

Cross-entropy is taken on masked positions only, since a masked language model copies the others.
loss recovered = (CE_ablated − CE_replaced) / (CE_ablated − CE_clean), ablated = every MLP output at its mean.
Nothing is clipped: a replacement worse than ablation is negative.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.activations.harvest import Corpus, Plan, mask_some, mlp_activations
from isotrace.dictionaries.crosslayer import CrossLayerTranscoder
from isotrace.dictionaries.replacement import ablated_hidden, replaced_hidden
from isotrace.subjects.subject import Subject

MODES = ("free_running", "teacher_forced")


@torch.no_grad()
def evaluate(
    subject: Subject,
    dictionary: CrossLayerTranscoder,
    sequences: Sequence[str],
    *,
    mask_rate: float = 0.15,
    seed: int = 0,
    n_bootstrap: int = 500,
) -> dict[str, Any]:
    """Fidelity of `dictionary` on `sequences`, each masked once at `mask_rate`.

    Returns `free_running` and `teacher_forced` {loss_recovered, ci, top1_agreement, kl, cross_entropy},
    `clean` and `ablated` {cross_entropy, top1}, `fve [n_layers]`, `l0` (per token and layer), `dead_fraction`
    (no activation on this set), counts. CIs are 95 % bootstrap intervals over sequences.
    """
    config, corpus = dictionary.config, Corpus.of(subject, sequences)
    mean_out = mean_mlp_out(subject, corpus, seed)
    per_sequence: dict[str, list[Tensor]] = {}
    residual, total = torch.zeros(config.n_layers), torch.zeros(config.n_layers)
    fired = torch.zeros(config.n_layers, config.n_features, dtype=torch.bool)
    active, n_tokens = 0, 0
    for number, rows in enumerate(Plan(corpus.lengths, 4_096, seed).epoch(0)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        batch, chosen = mask_some(subject, corpus.batch(rows), mask_rate, generator)
        truth = torch.from_numpy(np.stack([corpus.ids[r] for r in rows]))
        x, y, final = mlp_activations(subject, batch)
        clean = subject.head(final).log_softmax(-1)
        finals = {
            "free_running": replaced_hidden(subject, dictionary, batch, "free_running"),
            "teacher_forced": replaced_hidden(subject, dictionary, batch, "teacher_forced", list(x)),
            "ablated": ablated_hidden(subject, batch, mean_out),
        }
        record = {"n": chosen.sum(1), "clean": _entropy(clean, truth, chosen)}
        record["clean_top1"] = ((clean.argmax(-1) == truth) & chosen).sum(1)
        for name, hidden in finals.items():
            logits = subject.head(hidden).log_softmax(-1)
            record[name] = _entropy(logits, truth, chosen)
            record[f"{name}_top1"] = ((logits.argmax(-1) == truth) & chosen).sum(1)
            record[f"{name}_agree"] = ((logits.argmax(-1) == clean.argmax(-1)) & chosen).sum(1)
            record[f"{name}_kl"] = ((clean.exp() * (clean - logits)).sum(-1) * chosen).sum(1)
        for key, value in record.items():
            per_sequence.setdefault(key, []).append(value.double())
        flat_x, flat_y = x.flatten(1, 2), y.flatten(1, 2)
        residual += (flat_y - dictionary(flat_x)).square().sum((1, 2))
        total += (flat_y - mean_out[:, None]).square().sum((1, 2))
        for layer in range(config.n_layers):
            sparse = dictionary.encode(layer, flat_x[layer])
            fired[layer, sparse.indices[sparse.values > 0]] = True
            active += int((sparse.values > 0).sum())
        n_tokens += batch.ids.numel()
    sums = {k: torch.cat(v).numpy() for k, v in per_sequence.items()}
    draws = np.random.default_rng(seed).integers(0, len(sums["n"]), (n_bootstrap, len(sums["n"])))

    def recovered(name: str, rows: np.ndarray) -> np.ndarray:
        ablated, clean, replaced = (sums[k][rows].sum(-1) for k in ("ablated", "clean", name))
        return (ablated - replaced) / (ablated - clean)

    n = sums["n"].sum()
    result: dict[str, Any] = {}
    for mode in MODES:
        low, high = np.quantile(recovered(mode, draws), [0.025, 0.975])
        result[mode] = {
            "loss_recovered": float(recovered(mode, np.arange(len(sums["n"])))),
            "ci": [float(low), float(high)],
            "top1_agreement": float(sums[f"{mode}_agree"].sum() / n),
            "kl": float(sums[f"{mode}_kl"].sum() / n),
            "cross_entropy": float(sums[mode].sum() / n),
        }
    for name in ("clean", "ablated"):
        result[name] = {"cross_entropy": float(sums[name].sum() / n), "top1": float(sums[f"{name}_top1"].sum() / n)}
    return result | {
        "fve": (1 - residual / total).tolist(),
        "l0": active / (n_tokens * config.n_layers),
        "dead_fraction": float((~fired).float().mean()),
        "n_sequences": len(corpus.ids),
        "n_tokens": n_tokens,
        "n_masked": int(n),
    }


@torch.no_grad()
def mean_mlp_out(subject: Subject, corpus: Corpus, seed: int, tokens: int = 20_000) -> Tensor:
    """Mean MLP output `[n_layers, d_model]` over about `tokens` tokens of the corpus."""
    total, count = torch.zeros(subject.n_layers, subject.d_model), 0
    for rows in Plan(corpus.lengths, 4_096, seed).epoch(0):
        _, y, _ = mlp_activations(subject, corpus.batch(rows))
        total += y.sum((1, 2))
        count += y.shape[1] * y.shape[2]
        if count >= tokens:
            break
    return total / count


def _entropy(log_probabilities: Tensor, truth: Tensor, chosen: Tensor) -> Tensor:
    """Summed cross-entropy per sequence `[batch]` over the chosen positions, in nats."""
    return -(log_probabilities.gather(-1, truth[..., None])[..., 0] * chosen).sum(1)

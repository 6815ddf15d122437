"""How faithful the replacement model is on held-out sequences (METHODS §3).

Cross-entropy is that of what the subject predicts: of masked tokens, since a masked language model copies the others;
of a causal one every next token, the end token too; of a fine-tuned one the class it finds most probable itself; of a
latent all that is decoded from it.
loss recovered = (CE_ablated − CE_replaced) / (CE_ablated − CE_clean), ablated = all the dictionary writes at its mean.
Nothing is clipped: a replacement worse than ablation is negative, and what is undefined is NaN with a note.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.activations.harvest import Corpus, Plan, mask_rate_of, mask_some
from isotrace.base.errors import InputError, RunError, SubjectError
from isotrace.base.settings import child_seed
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.replacement import ablated_hidden, asked_of, replaced_hidden
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.stats.share import share
from isotrace.subjects.heads.outputs import ONE_LABEL
from isotrace.subjects.subject import Batch, Subject

MODES = ("free_running", "teacher_forced")
BATCH_TOKENS = 4_096
ROUNDING = 1e-6  # cross-entropies closer than this, relatively, are one number in float32
Progress = Callable[[list[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Measured:
    """One dictionary on one set of sequences.

    sums: per sequence `[n_sequences]` float64, over its predicted tokens: `n`, then cross-entropy (nats), hits of the
        truth, agreement and KL with the clean subject under `clean`, `ablated` and both modes.
    residual, total: squared error and variance `[n_layers]` of what is written. fired: tokens on which each feature
        is active `[n_layers, F]`. norms: of decoder rows `[n_layers, F]`. n_tokens: all tokens, predicted or not.
    """

    sums: dict[str, np.ndarray]
    residual: np.ndarray
    total: np.ndarray
    fired: np.ndarray
    norms: np.ndarray
    n_tokens: int

    @property
    def every(self) -> np.ndarray:
        """Weights of the sequences as they are."""
        return np.ones(len(self.sums["n"]))

    def recovered(self, mode: str, weights: np.ndarray) -> np.ndarray:
        """Loss recovered of every draw of sequences `[..., n]` → `[...]`; NaN where ablation changes nothing."""
        ablated, clean, replaced = (weights @ self.sums[name] for name in ("ablated", "clean", mode))
        return share(ablated - replaced, ablated - clean, ROUNDING * np.abs(clean))


def evaluate(
    subject: Subject,
    dictionary: Dictionary,
    sequences: Sequence[str],
    *,
    mask_rate: float | None = None,
    seed: int = 0,
    n_bootstrap: int = 500,
) -> dict[str, Any]:
    """Fidelity of `dictionary` on `sequences`, each masked once at `mask_rate`, see `mask_rate_of`; a causal subject
    predicts every next token of theirs. What the dictionary writes is replaced; other layers and sites stay the
    subject's own.

    Returns `free_running` and `teacher_forced` {loss_recovered, ci, note, top1_agreement, kl, cross_entropy},
    `clean` and `ablated` {cross_entropy, top1}, `fve [n_layers]`, `l0` (per token and layer), `dead_fraction`
    (no activation on this set), `density`, `decoder_norms` and counts, see `summarise`. CIs are 95 % bootstrap
    intervals over sequences. Raises as `measure` does.
    """
    corpus = Corpus.of(subject, sequences)
    measured = measure(subject, [dictionary], corpus, names=["the dictionary"], mask_rate=mask_rate, seed=seed)[0]
    return summarise(measured, bootstrap_weights(len(corpus.ids), n_bootstrap, seed))


def require_predictions(subject: Subject) -> None:
    """Raises SubjectError unless the subject predicts tokens or classes, which is where fidelity is measured."""
    task = subject.task
    if not subject.has_head and (task is None or task.problem != ONE_LABEL or len(task.names) == 1):
        what = "language-model head" if task is None else "head of one class among several"
        raise SubjectError(
            f"{subject.source} has no {what}, so no cross-entropy: fidelity is measured on predictions of tokens or "
            "such classes; evaluate on the same model with its language-model head."
        )
    if task is None and subject.mask_id is None and not subject.predicts_next:
        raise SubjectError(
            f"the tokenizer of {subject.source} has no mask token, where its fidelity is measured: give it one."
        )


@torch.no_grad()
def measure(
    subject: Subject,
    dictionaries: Sequence[Dictionary],
    corpus: Corpus,
    *,
    names: Sequence[str],
    mask_rate: float | None,
    seed: int,
    progress: Progress = iter,
) -> list[Measured]:
    """Every dictionary on the same sequences with the same masks, which the subject reads once for all of them.

    `names` are for messages, `progress` wraps the list of batches. Raises SubjectError for a subject that predicts no
    tokens or a `mask_rate` above 0 where none are masked, InputError if no token is predicted, RunError naming the
    dictionary whose numbers are not finite.
    """
    configs = [dictionary.config for dictionary in dictionaries]
    subject = asked_of(subject, configs)
    require_predictions(subject)
    rate = mask_rate_of(subject, mask_rate)
    sites = sorted({site for config in configs for site in (*config.reads, *config.writes)})
    means = {
        writes: mean_activations(subject, corpus, writes, seed)
        for writes in ({tuple(config.writes) for config in configs} if len(corpus.ids) else ())
    }
    tallies = [_Tally(dictionary, means.get(tuple(dictionary.config.writes))) for dictionary in dictionaries]
    for number, rows in enumerate(progress(Plan(corpus.lengths, BATCH_TOKENS, seed).epoch(0))):
        generator = torch.Generator().manual_seed(child_seed(seed, number))
        whole = corpus.batch(rows).to(subject.device)
        batch, asked = _asked(subject, whole, rate, generator)
        output = subject.run(batch, capture=sites, logits=False)
        clean = asked.logits(output.final)
        asked = asked if subject.task is None else replace(asked, truth=clean.argmax(-1))
        shared = {"n": asked.places.sum(1).double().cpu()} | asked.scores("clean", clean, None)
        ablated: dict[tuple[str, ...], dict[str, Tensor]] = {}
        for tally in tallies:
            config, writes = tally.dictionary.config, tuple(tally.dictionary.config.writes)
            if writes not in ablated:
                hidden = ablated_hidden(subject, tally.dictionary, batch, means[writes])
                ablated[writes] = asked.scores("ablated", asked.logits(hidden), clean)
            record = shared | ablated[writes]
            reads = [output.captured[site] for site in config.reads]
            for mode in MODES:
                given = reads if mode == "teacher_forced" else None
                hidden = replaced_hidden(subject, tally.dictionary, batch, mode, given)
                record |= asked.scores(mode, asked.logits(hidden), clean)
            tally.add(record, torch.stack(reads), torch.stack([output.captured[site] for site in config.writes]))
    if not len(corpus.ids) or not sum(float(n.sum()) for n in tallies[0].sums["n"]):
        way = "predicted: give sequences of two tokens or more"
        way = way if subject.predicts_next else "masked: give more, or raise --mask-rate"
        raise InputError(f"no token of {len(corpus.ids)} sequences was {way}.")
    return [tally.measured(name) for name, tally in zip(names, tallies, strict=True)]


@dataclass(frozen=True)
class _Asked:
    """What a `batch` is asked: the `places [batch, tokens]` bool whose logits predict the tokens or classes
    `truth [n]`, and where alone the head is run; of a head of sequences a place stands for its sequence."""

    subject: Subject
    batch: Batch
    places: Tensor
    truth: Tensor

    def logits(self, hidden: Tensor) -> Tensor:
        """Log-probabilities `[n, vocabulary or classes]` from final hidden states `[batch, tokens, d_model]`."""
        if (task := self.subject.task) is not None:
            read = hidden[self.places] if task.kind == "token" else task.pooled(self.batch, hidden)
            return task.outputs(read).log_softmax(-1)
        return self.subject.head(hidden[self.places]).log_softmax(-1)

    def scores(self, name: str, logits: Tensor, clean: Tensor | None) -> dict[str, Tensor]:
        """Sums per sequence `[batch]` float64: cross-entropy in nats, hits; against `clean` also agreement and
        KL(clean ‖ name) in nats."""
        best = logits.argmax(-1)
        found = {name: -logits.gather(-1, self.truth[:, None])[:, 0], f"{name}_top1": best == self.truth}
        if clean is not None:
            found[f"{name}_agree"] = best == clean.argmax(-1)
            found[f"{name}_kl"] = (clean.exp() * (clean - logits)).sum(-1)
        empty = torch.zeros(len(self.places), dtype=torch.float64)
        sequence = self.places.nonzero()[:, 0].cpu()
        return {key: empty.index_add(0, sequence, value.double().cpu()) for key, value in found.items()}


def _asked(subject: Subject, whole: Batch, rate: float, generator: torch.Generator) -> tuple[Batch, _Asked]:
    """(what the subject reads, what it is asked): tokens masked at `rate`, every next one, decoded ones, or classes."""
    if subject.decodes:
        return whole, _Asked(subject, whole, whole.mask, whole.ids[whole.mask])
    if subject.predicts_next and subject.task is None:
        follows = whole.mask[:, 1:]
        return whole, _Asked(subject, whole, torch.nn.functional.pad(follows, (0, 1)), whole.ids[:, 1:][follows])
    batch, chosen = mask_some(subject, whole, rate, generator)
    if subject.task is not None:
        first = torch.arange(whole.ids.shape[1]).expand_as(whole.ids) == 0
        chosen = whole.mask & ~subject.special(whole.ids) if subject.task.kind == "token" else first
    return batch, _Asked(subject, batch, chosen.to(whole.ids.device), whole.ids[chosen])


class _Tally:
    """Running sums of one dictionary; `mean_out [n_layers, d_out]` is what FVE is relative to."""

    def __init__(self, dictionary: Dictionary, mean_out: Tensor | None) -> None:
        config = dictionary.config
        self.dictionary, self.mean_out, self.sums, self.n_tokens = dictionary, mean_out, {}, 0
        self.residual, self.total = (torch.zeros(config.n_layers, dtype=torch.float64) for _ in range(2))
        self.fired = torch.zeros(config.n_layers, config.n_features, dtype=torch.int64)

    def add(self, record: dict[str, Tensor], x: Tensor, y: Tensor) -> None:
        """x, y `[n_layers, batch, tokens, d]`: what is read, and what should be written."""
        assert self.mean_out is not None
        for key, value in record.items():
            self.sums.setdefault(key, []).append(value)
        x, y, dictionary = x.flatten(1, 2), y.flatten(1, 2), self.dictionary
        active = [dictionary.encode(layer, tokens) for layer, tokens in enumerate(x)]
        self.residual += (y - dictionary.written(active, x)).square().sum((1, 2)).cpu()
        self.total += (y - self.mean_out[:, None]).square().sum((1, 2)).cpu()
        for layer, sparse in enumerate(active):
            indices = sparse.indices[sparse.values > 0].long()
            self.fired[layer] += torch.bincount(indices, minlength=dictionary.config.n_features).cpu()
        self.n_tokens += x.shape[1]

    def measured(self, name: str) -> Measured:
        sums = {key: torch.cat(values).numpy() for key, values in self.sums.items()}
        if bad := [key for key, values in sums.items() if not np.isfinite(values).all()]:
            raise RunError(f"{name}: {bad[0]} is not finite: get the dictionary again, or train it again.")
        norms = self.dictionary.decoder_norms().cpu().numpy()
        return Measured(sums, self.residual.numpy(), self.total.numpy(), self.fired.numpy(), norms, self.n_tokens)


def summarise(measured: Measured, weights: np.ndarray) -> dict[str, Any]:
    """The dictionary that `evaluate` returns. `note` says why a loss recovered or its interval is NaN, or that
    ablation helps, so that its sign is turned round; else it is None."""
    every, sums, result = measured.every, measured.sums, {}
    n = float(sums["n"].sum())
    clean, ablated = (float(sums[name].sum() / n) for name in ("clean", "ablated"))
    for mode in MODES:
        point = float(measured.recovered(mode, every))
        bounds, note = noted_interval(measured.recovered(mode, weights), len(every))
        if np.isnan(point):
            note = f"undefined: cross-entropy is {clean:.6g} with and without ablation"
        elif ablated < clean:
            note = f"ablation lowers cross-entropy, from {clean:.4g} to {ablated:.4g}"
        result[mode] = {
            "loss_recovered": point,
            "ci": bounds,
            "note": note,
            "top1_agreement": float(sums[f"{mode}_agree"].sum() / n),
            "kl": float(sums[f"{mode}_kl"].sum() / n),
            "cross_entropy": float(sums[mode].sum() / n),
        }
    for name, entropy in (("clean", clean), ("ablated", ablated)):
        result[name] = {"cross_entropy": entropy, "top1": float(sums[f"{name}_top1"].sum() / n)}
    total = np.where(measured.total > 0, measured.total, np.nan)
    return result | {
        "fve": (1 - measured.residual / total).tolist(),
        "l0": float(measured.fired.sum() / (measured.n_tokens * len(measured.fired))),
        "dead_fraction": float((measured.fired == 0).mean()),
        "density": density(measured.fired, measured.n_tokens),
        "decoder_norms": _quantiles(measured.norms, {"q05": 0.05, "median": 0.5, "q95": 0.95}),
        "n_sequences": len(every),
        "n_tokens": measured.n_tokens,
        "n_predicted": int(n),
    }


def noted_interval(values: np.ndarray, n_sequences: int) -> tuple[tuple[float, float], str | None]:
    """(95 % percentile interval of bootstrap `values`, None), or NaN and why there is none."""
    if n_sequences < 2 or not len(values):
        return (np.nan, np.nan), "no interval: it needs two sequences and a bootstrap"
    found = interval(values)
    undefined = f"no interval: undefined in {np.isnan(values).sum()} of {len(values)} bootstrap draws"
    return found, undefined if np.isnan(found[0]) else None


def density(fired: np.ndarray, n_tokens: int) -> dict[str, Any]:
    """Share of tokens on which a feature is active, over all layers: quantiles of all features, and a histogram of
    log10 over those active at all (`edges`, `counts`); `n_dead` are the others."""
    share = fired.ravel() / n_tokens
    edges = np.arange(min(np.floor(-np.log10(n_tokens)), -1), 0.25, 0.5)
    counts, _ = np.histogram(np.log10(fired[fired > 0]) - np.log10(n_tokens), edges)
    levels = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
    histogram = {"edges": edges.tolist(), "counts": counts.tolist(), "n_dead": int((share == 0).sum())}
    return {"quantiles": _quantiles(share, levels), "histogram": histogram}


def _quantiles(values: np.ndarray, levels: dict[str, float]) -> dict[str, float]:
    return {name: float(np.quantile(values, level)) for name, level in levels.items()}


@torch.no_grad()
def mean_activations(subject: Subject, corpus: Corpus, hookpoints: Sequence[str], seed: int, tokens=20_000) -> Tensor:
    """Mean activation `[n_hookpoints, d]` over about `tokens` tokens of the corpus, or sequences where pooled."""
    total, count = torch.zeros(()), 0
    for rows in Plan(corpus.lengths, BATCH_TOKENS, seed).epoch(0):
        if count >= tokens:
            break
        captured = subject.run(corpus.batch(rows).to(subject.device), capture=hookpoints, logits=False).captured
        total = total + torch.stack([captured[site].sum((0, 1)) for site in hookpoints])
        count += len(rows) * captured[hookpoints[0]].shape[1]
    return total / count

"""Stochastic sub-attention: does a model of molecules learn better where every layer sees only some keys?

In training each layer keeps a share of the keys and their values, drawn anew for every batch; the last steps are dense.
A model so trained is asked densely, and as an ensemble: the mean of the probabilities of several sub-sampled passes.
After Hussain et al. 2023 (arXiv:2306.01705), who save attention by it. Strings of some 40 tokens save nothing: here it
is a regulariser, beside dropout of as many entries of the pattern. A share `random` holds the same keys for every query
of the layer, one `near` those beside it once keys were shuffled within windows. <cls>, <eos> and a token's own key are
never removed, masked tokens are keys like others, and what is left of a pattern sums to 1 again. Only dropout draws
every entry by itself and scales up what is left instead, as it always does.

Small subjects are trained from bundled molecules by masked language modelling, all on the same batches and masks, and
judged on others.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

from isotrace.activations.harvest import mask_some
from isotrace.base.errors import InputError
from isotrace.base.settings import child_seed
from isotrace.domains.domain import domain_of
from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.dispatch import AttentionFunction, Site, overlaid, patterns_set
from isotrace.subjects.loading import quiet
from isotrace.subjects.subject import Batch, Subject, load_subject

TABLES = ("bbb", "bace", "esol", "lipophilicity")
MAX_TOKENS, MIN_BRACKETS, MASKED, WINDOW = 48, 20, 0.15, 16
"""Longest molecule with its special tokens; brackets seen as often are one token; share masked; tokens of a shuffle."""
WIDTH, HEADS, LAYERS, SPREAD = 48, 2, 3, 0.1
ROWS, RATE, DECAY, DENSE_END = 8, 5e-3, 0.05, 0.15
"""Molecules of a step, Adam's largest rate and weight decay, and the share of the last steps that are dense."""
N_DRAWS = 2_000


@dataclass(frozen=True)
class Rule:
    """`share`: of the keys that may be removed, what is kept."""

    kind: Literal["random", "near", "dropout"]
    share: float

    def __str__(self) -> str:
        return f"{'dropout' if self.kind == 'dropout' else f'sub-attention, {self.kind}'} 1/{round(1 / self.share)}"


QUARTER = Rule("random", 1 / 4)
RULES = (QUARTER, Rule("random", 1 / 8), Rule("near", 1 / 4), Rule("dropout", 1 / 4), Rule("dropout", 1 / 8))


@dataclass(frozen=True)
class Size:
    """`corpora`: name → (training molecules, steps). `judged`: held-out molecules. `passes`: of an ensemble."""

    seeds: int
    corpora: dict[str, tuple[int, int]]
    judged: int
    passes: int


SIZES = {
    True: Size(2, {"small": (50, 800)}, 300, 8),
    False: Size(5, {"small": (50, 3_000), "large": (9_000, 1_000)}, 500, 16),
}


def removable(subject: Subject, batch: Batch) -> Tensor:
    """`[batch, tokens]` bool: real tokens that are not special, and masked ones."""
    fixed = subject.special(batch.ids) & (batch.ids != subject.mask_id)
    return batch.mask & ~fixed


def kept(rule: Rule, free: Tensor, generator: torch.Generator, each: bool) -> Tensor:
    """Which of the keys `free [batch, tokens]` a query sees, by `random` or `near`: `[batch, 1 or queries, keys]` bool.
    Of n free ones share · n, rounded up or down by chance so that the mean is exact. The draw is one for the batch, or
    one for each row."""
    rows = len(free) if each else 1
    place, n = (free.cumsum(1) - 1).clamp(min=0), free.sum(1, keepdim=True)
    n_kept = (rule.share * n + torch.rand(rows, 1, generator=generator)).floor().long().clamp(max=n)
    key = torch.rand(rows, free.shape[1], generator=generator).expand(free.shape)
    if rule.kind == "near":
        key = key + place // WINDOW
    rank = key.masked_fill(~free, torch.inf).argsort(1).argsort(1)[:, None]
    first = torch.zeros_like(n)
    if rule.kind == "near":
        first = torch.minimum((place - n_kept // 2).clamp(min=0), n - n_kept)
    return free[:, None] & (rank >= first[..., None]) & (rank < (first + n_kept)[..., None])


def sub_sampled(subject: Subject, batch: Batch, rule: Rule, generator: torch.Generator, each: bool = False):
    """Context in which every layer sees what `rule` leaves it, drawn anew at every call; gradients flow through what is
    left. `each`: a draw for each row of the batch instead of one for all."""
    free = removable(subject, batch)
    others = free[:, None, None] & ~torch.eye(free.shape[1], dtype=torch.bool)

    def attend(beneath: AttentionFunction, module: torch.nn.Module, query, key, value, mask, scaling):
        # before the softmax: of a pattern that looks elsewhere nothing may be left that could be scaled to 1 again
        seen = kept(rule, free, generator, each)[:, None] | ~others
        removed = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        return beneath(module, query, key, value, removed if mask is None else mask + removed, scaling)

    def dropped(module: torch.nn.Module, own: Any, n: int) -> Tensor:
        pattern = own()
        seen = torch.rand(pattern.shape, generator=generator) < rule.share
        return pattern * torch.where(others, seen / rule.share, 1.0)

    if rule.kind == "dropout":
        return patterns_set(subject, dropped)
    return overlaid((module, Site(attention=(attend,))) for module in subject.attentions)


def molecules() -> list[str]:
    """Canonical SMILES of the bundled tables, each once and in random order, without what RDKit does not take."""
    domain, found = domain_of("molecule"), set()
    for text in {text for name in TABLES for text in bundled_table(name)["smiles"]}:
        with suppress(InputError):
            found.add(domain.same(text))
    texts = sorted(found)
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def fresh(folder: Path, corpus: Sequence[str], seed: int) -> Subject:
    """An ESM with random weights that reads molecules, saved in `folder` and loaded; it may be trained."""
    tokenizer = build_tokenizer(corpus, MIN_BRACKETS, MAX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = EsmForMaskedLM(EsmConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH, max_position_embeddings=MAX_TOKENS, position_embedding_type="rotary",
            token_dropout=False, emb_layer_norm_before=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            pad_token_id=1, mask_token_id=4, initializer_range=SPREAD,
        ))  # fmt: skip
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    subject = load_subject(folder, domain="molecule")
    subject.model.requires_grad_(True)
    return subject


def taken(batch: Batch, rows: Tensor) -> Batch:
    """Some rows, as wide as the longest of them."""
    width = int(batch.mask[rows].sum(1).max())
    return replace(batch, ids=batch.ids[rows, :width], mask=batch.mask[rows, :width])


def trained(subject: Subject, corpus: Batch, rule: Rule | None, steps: int, seed: int) -> None:
    """The weights of `subject` change. What is read and masked follows from `seed` alone, whatever the rule."""
    data, draws = (torch.Generator().manual_seed(child_seed(seed, i)) for i in (1, 2))
    optimizer = torch.optim.AdamW(
        subject.model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        whole = taken(corpus, torch.randint(len(corpus.ids), (ROWS,), generator=data))
        batch, chosen = mask_some(subject, whole, MASKED, data)
        dense = step >= (1 - DENSE_END) * steps
        with nullcontext() if dense or rule is None else sub_sampled(subject, batch, rule, draws):
            logits = subject.head(subject.hidden(batch.ids, batch.mask)[chosen])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, whole.ids[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(subject.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@dataclass(frozen=True, eq=False)
class Judged:
    """`n` molecules, each as often as it has masks of its own, which are the same for all subjects: `chosen
    [rows, tokens]` of `whole` are hidden in `masked`; row r is molecule r % n."""

    n: int
    whole: Batch
    masked: Batch
    chosen: Tensor

    @classmethod
    def of(cls, subject: Subject, texts: Sequence[str], copies: int, seed: int) -> "Judged":
        whole = subject.tokenize([*texts] * copies)
        return cls(len(texts), whole, *mask_some(subject, whole, MASKED, torch.Generator().manual_seed(seed)))

    def summed(self, values: Tensor) -> np.ndarray:
        """Of each molecule `[n]`; `values [masked tokens]`."""
        at = self.chosen.nonzero()[:, 0] % self.n
        return torch.zeros(self.n, dtype=torch.float64).index_add(0, at, values.double()).numpy()

    def counts(self) -> np.ndarray:
        """Masked tokens of each molecule `[n]`."""
        return self.summed(torch.ones(int(self.chosen.sum())))


Losses = dict[str, np.ndarray]
"""Kind of pass → nats of the masked tokens of each molecule `[n]`, summed."""


@torch.no_grad()
def losses(subject: Subject, judged: Judged, rule: Rule, passes: int, seed: int) -> Losses:
    """Of the `dense` pass, of the mean of the probabilities of `passes` sub-sampled ones (`ensemble`), and the mean
    over these passes (`one`)."""
    draws, batch, chosen = torch.Generator().manual_seed(seed), judged.masked, judged.chosen
    truth = judged.whole.ids[chosen]

    def logs() -> Tensor:
        """`[masked tokens]`: of the probability of the right one."""
        logits = subject.head(subject.hidden(batch.ids, batch.mask)[chosen])
        return logits.double().log_softmax(-1).gather(1, truth[:, None])[:, 0]

    dense = logs()
    with sub_sampled(subject, batch, rule, draws, each=True):
        drawn = torch.stack([logs() for _ in range(passes)])
    found = {"dense": dense, "ensemble": drawn.logsumexp(0) - math.log(passes), "one": drawn.mean(0)}
    return {kind: -judged.summed(values) for kind, values in found.items()}


def drawn_means(sums: Sequence[np.ndarray], counts: np.ndarray, seed: int, who: int) -> np.ndarray:
    """`[1 + N_DRAWS]` nats a masked token, as observed and then of molecules and seeds drawn with replacement, both at
    once. `sums`: of each seed those of its molecules `[n]`. Draws of seeds follow from `seed`, those of molecules from
    `who` too: what shares both is paired."""
    n_seeds, n = len(sums), len(counts)
    seeds = np.concatenate([np.ones((1, n_seeds)), bootstrap_weights(n_seeds, N_DRAWS, (seed, 0))])
    weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, N_DRAWS, (seed, 1 + who))])
    return (seeds @ np.stack(sums) * weights).sum(1) / (n_seeds * weights @ counts)


@study("sub_attention", "keys removed at random in training: a better model of molecules than dense attention makes?")
def sub_attention(setting: Setting) -> Outcome:
    size, corpus, rows = SIZES[setting.quick], molecules(), []
    reader = fresh(setting.work / "sub-attention", corpus, setting.seed)
    texts = [text for text, (*_, why) in zip(corpus, reader.tokenized(corpus), strict=True) if why is None]
    held, rest = Judged.of(reader, texts[: size.judged], 1, setting.seed), texts[size.judged :]
    for name, (n, steps) in size.corpora.items():
        read = reader.tokenize(rest[:n])
        known = Judged.of(reader, rest[: min(n, size.judged)], max(1, size.judged // n), setting.seed)
        found: dict[Rule | None, list[tuple[Losses, Losses]]] = {rule: [] for rule in (None, *RULES)}
        jobs = [(rule, s) for rule in found for s in range(size.seeds)]
        for rule, s in setting.progress(jobs, f"training on the {name} corpus"):
            seed, passes = setting.seed + s, rule or QUARTER
            subject = fresh(setting.work / f"sub-attention-{seed}", corpus, seed)
            trained(subject, read, rule, steps, seed)
            ours = losses(subject, held, passes, size.passes, seed)
            found[rule].append((ours, losses(subject, known, passes, 1, seed)))
        here = compared(found, held.counts(), known.counts(), setting.seed)
        rows += [{"corpus": name, "molecules": n, "steps": steps} | row for row in here]
    return Outcome({"training": rows}, (_explained(size), *_verdicts(rows)))


def compared(
    found: dict[Rule | None, list[tuple[Losses, Losses]]], held: np.ndarray, known: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """A row for each rule, dense training first. `found`: of each seed losses of held-out molecules and of those
    trained on; `held` and `known [n]`: their masked tokens."""
    rows, plain = [], {}
    for rule, pairs in found.items():
        draws = {k: drawn_means([ours[k] for ours, _ in pairs], held, seed, 0) for k in ("dense", "ensemble", "one")}
        draws["gap"] = draws["dense"] - drawn_means([theirs["dense"] for _, theirs in pairs], known, seed, 1)
        plain = plain or draws
        draws |= {f"{k}_diff": draws[k] - plain[k] for k in ("dense", "gap")}
        draws |= {"ensemble_diff": draws["ensemble"] - plain["dense"], "own_diff": draws["ensemble"] - draws["dense"]}
        own, first = ([ours["dense"].sum() for ours, _ in found[r]] for r in (rule, None))
        row: dict[str, Any] = {"training": str(rule or "dense"), "passes": str(rule or QUARTER), "seeds": len(pairs)}
        row["better_seeds"] = sum(bool(a < b) for a, b in zip(own, first, strict=True))
        for name, values in draws.items():
            row |= {name: float(values[0]), f"{name}_ci": interval(values[1:])}
        rows.append(row)
    return rows


def _explained(size: Size) -> str:
    return (
        f"nats a masked token of {size.judged} held-out molecules, after steps of {ROWS} molecules, the same for all. "
        f"dense: one dense pass; ensemble: mean of the probabilities of {size.passes} passes drawn as `passes` says; "
        "one: mean loss of these passes. dense_diff and ensemble_diff: minus the dense pass of dense training; "
        "own_diff: ensemble minus own dense pass; gap: held-out minus training molecules, dense pass. Where gap_diff "
        "is below 0 and dense_diff is not, less was learned of both. better_seeds: seeds whose dense pass is better "
        f"than that of dense training. Paired intervals, over molecules and {size.seeds} seeds at once"
        f"{': so few seeds make them too narrow' if size.seeds < 5 else ''}."
    )


def _verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Of each corpus how many of the trainings other than dense are better and worse by each difference."""
    found = []
    for corpus in dict.fromkeys(row["corpus"] for row in rows):
        own, said = [row for row in rows if row["corpus"] == corpus and row["training"] != "dense"], []
        for name in ("dense_diff", "ensemble_diff", "own_diff", "gap_diff"):
            low, high = np.array([row[f"{name}_ci"] for row in own]).T
            said.append(f"{name} below 0 in {(high < 0).sum()} and above in {(low > 0).sum()}")
        found.append(f"{corpus} corpus, {len(own)} trainings beside dense, by the whole interval: {'; '.join(said)}.")
    return found

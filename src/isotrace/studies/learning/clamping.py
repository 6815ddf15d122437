"""Clamping through training: which part of an induction circuit do the others wait for?

Two layers that only attend read A a B b A and predict a. Three parts must be there at once: a head of the first layer
that looks at the token before (previous), a head of the second that finds the earlier A by it (match), and what that
head moves (copy). In each run chosen patterns are overwritten at every forward pass, as interventions, and gradients
flow around them: what is clamped is right from the first step on and does not learn. What is left decides when the
loss falls. After Singh et al. 2024 (arXiv:2404.07129), whose runs take steps of 1e-5; ours are Adam's of 1e-3, so that
a run takes seconds. Copy has no pattern, so it is what is left where both others are clamped.
"""

import math
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from isotrace.interventions import MLPs
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.learning.factors import steps_until_learned
from isotrace.studies.study import Outcome, Setting, study
from isotrace.studies.worlds.planted_weights import of_residues
from isotrace.subjects.dispatch import patterns_set
from isotrace.subjects.loading import quiet
from isotrace.subjects.subject import Subject, load_subject

TOKENS = "ACDEFGHIKLMNPQRSTVWY"
WIDTH, HEADS, BATCH, RATE = 64, 8, 64, 1e-3
LEARNED, SMOOTH = math.log(2) / 2, 25
"""Nats: half of what guessing between the two values seen costs; steps that the loss is averaged over."""
CLAMPS: dict[str, tuple[str, ...]] = {
    "nothing": (), "previous": ("previous",), "match": ("match",), "previous and match": ("previous", "match")
}  # fmt: skip
FACTORS: dict[str, tuple[int, ...]] = {"nothing": (), "c": (2,), "b and c": (1, 2)}


def fresh(folder: Path, seed: int) -> Subject:
    """A causal subject with random weights, saved in `folder` and loaded; it may be trained."""
    tokenizer = of_residues(TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), n_positions=16, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=1, resid_pdrop=0,
            embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=2, pad_token_id=1,
        ))  # fmt: skip
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    subject = load_subject(folder, domain="protein")
    subject.model.requires_grad_(True)
    return subject


def drawn(subject: Subject, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(`[n, 5]` ids A a B b and A or B again, `[n]` place of the right answer)."""
    places = torch.rand(n, len(TOKENS), generator=generator).argsort(1)[:, :4]
    ids = torch.tensor([subject.token_id(t) for t in TOKENS])[places]
    second = torch.randint(2, (n,), generator=generator)
    query = ids.gather(1, 2 * second[:, None])
    return torch.cat([ids, query], 1), 2 * second + 1


def clamped_patterns(subject: Subject, clamps: Collection[str], answer: Tensor):
    """Context in which head 0 of the first layer looks at the token before it (`previous`), and head 0 of the second
    looks from the last token at `answer [batch]` (`match`); gradients flow around them."""
    first, second = subject.attentions

    def given(module: torch.nn.Module, own: Any, n: int) -> Tensor:
        pattern = own()
        right = pattern[:, 0].detach().clone()
        if module is first and "previous" in clamps:
            right = torch.eye(right.shape[-1]).roll(-1, 1).expand_as(right).clone()
            right[:, 0] = torch.eye(right.shape[-1])[0]
        elif module is second and "match" in clamps:
            right[:, -1] = torch.nn.functional.one_hot(answer, right.shape[-1]).to(right)
        else:
            return pattern
        return torch.cat([right[:, None], pattern[:, 1:]], 1)

    return patterns_set(subject, given)


def trained(subject: Subject, clamps: Collection[str], n_steps: int, seed: int) -> np.ndarray:
    """The loss of every step `[n_steps]`, nats; the weights of `subject` change. MLPs write nothing."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(subject.model.parameters(), lr=RATE)
    losses = []
    for _ in range(n_steps):
        ids, answer = drawn(subject, BATCH, generator)
        with ExitStack() as stack:
            stack.enter_context(MLPs().edited(subject, lambda _, z: torch.zeros_like(z)))
            stack.enter_context(clamped_patterns(subject, clamps, answer))
            logits = subject.head(subject.hidden(ids, torch.ones_like(ids, dtype=torch.bool))[:, -1])
        loss = torch.nn.functional.cross_entropy(logits, ids.gather(1, answer[:, None])[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def fall(losses: np.ndarray) -> tuple[float, float]:
    """(step at which the smoothed loss is below `LEARNED` first, steps that it takes from ln 2 to there); NaN where it
    does not get there."""
    smooth = np.convolve(losses, np.ones(SMOOTH) / SMOOTH, "valid")
    reached = [np.flatnonzero(smooth < level) for level in (math.log(2), LEARNED)]
    if not len(reached[1]):
        return math.nan, math.nan
    return float(reached[1][0]), float(reached[1][0] - reached[0][0])


@study("clamping", "an induction circuit learned with parts of it clamped: which part do the others wait for?")
def clamping(setting: Setting) -> Outcome:
    n_seeds, n_steps = (3, 1_500) if setting.quick else (10, 4_000)
    toy, runs, curves = [], [], []
    for name, factors in FACTORS.items():
        counts = [steps_until_learned(factors, 1 + setting.seed + s) for s in range(10 * n_seeds)]
        known = np.array([n for n in counts if n is not None], dtype=float)
        toy.append({
            "clamped": name, "steps_first_seed": counts[0], "steps": float(known.mean()) if len(known) else math.nan,
            "steps_ci": mean_interval(known, setting.seed), "learned": len(known), "seeds": len(counts),
        })  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CLAMPS}
    jobs = [(name, s) for name in CLAMPS for s in range(n_seeds)]
    for name, s in setting.progress(jobs, "training with clamps"):
        seed = setting.seed + s
        losses = trained(fresh(setting.work / f"clamp-{seed}", seed), CLAMPS[name], n_steps, seed)
        found[name].append(fall(losses))
        curves += [
            {"clamped": name, "seed": seed, "step": at, "loss": float(losses[at : at + 50].mean())}
            for at in range(0, n_steps, 50)
        ]
    for name, pairs in found.items():
        steps, drop = np.array(pairs).T
        known = np.isfinite(steps)
        both = np.array([f[0] - g[0] for f, g in zip(found["nothing"], pairs, strict=True)])
        runs.append({
            "clamped": name, "seeds": n_seeds, "learned": int(known.sum()),
            "steps": float(steps[known].mean()) if known.any() else math.nan,
            "steps_ci": mean_interval(steps[known], setting.seed),
            "drop": float(drop[known].mean()) if known.any() else math.nan,
            "drop_ci": mean_interval(drop[known], setting.seed),
            "earlier": float(both.mean()), "earlier_ci": mean_interval(both, setting.seed),
        })  # fmt: skip
    notes = (
        f"steps: until the loss over {SMOOTH} steps is below {LEARNED:.2f} nats; drop: those of them below ln 2, where "
        "the circuit is better than a guess between the two values it has seen; earlier: paired, less than with "
        f"nothing clamped. A run that does not learn in {n_steps} steps counts in no mean, and leaves `earlier` "
        "undefined.",
    )
    return Outcome({"factors": toy, "training": runs, "curves": curves}, notes)

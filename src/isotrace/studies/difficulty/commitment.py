"""Commitment layer: from which layer on a subject holds to what it will answer, and whether errors are told by it.

The answer is the token with the largest logit at a masked place; layer 0 is the stream before the first block.

margin       m_l = logit of the answer less that of the best rival, by the logit lens on the stream behind layer l
commitment   the smallest l with m_k > 0 for all k ≥ l
causal       the same of patching: the stream behind layer l at the masked place, as it is, is put into a run whose
             context is in random order; restored = (m patched − m shuffled) / (m clean − m shuffled) of the last
             margin, causal = the smallest l from which on at least half is restored. Tokens whose margins differ by
             less than `LEAST_MARGIN` have none
coherence    share of the influence that reaches embeddings, in the attribution graph of answer − rival, that reaches
             tokens of the context other than the three nearest

An early commitment and a high coherence are said to go with right answers (published over models, ρ = −0.86 of
coherence and hallucination; the form here is ours). Each alone and all three stand beside entropy as detectors of
errors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import influence
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary
from isotrace.discovery.methods.logit_lens import logit_lens
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.metrics import auroc
from isotrace.studies.difficulty.depth_score import held_out
from isotrace.studies.network import molecules
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.heads.likelihoods import masked_copies
from isotrace.subjects.subject import Batch, Subject, load_subject
from isotrace.subjects.targets import parse_target

SUBJECT, DICTIONARY = "bundled:molm", "bundled:molm-clt"
NEAREST, HALF, LEAST_MARGIN, MAX_FEATURES = 3, 0.5, 0.5, 256
DRAWS, LEAST = 1_000, 10
"""Bootstrap draws; errors below which nothing is said."""
MEASURES = ("commitment", "causal", "coherence")
SIGNS = {"entropy": 1, "commitment": 1, "causal": 1, "coherence": -1}
"""The side on which errors are said to be."""


@dataclass(frozen=True)
class Committed:
    """Of one masked token; `causal` and `coherence` are NaN where they are not defined."""

    right: bool
    entropy: float
    commitment: float
    causal: float
    coherence: float


def from_which_on(holds: np.ndarray) -> int:
    """The smallest l with all of `holds[l:]`; its length where the last does not hold."""
    broken = np.flatnonzero(~holds)
    return int(broken[-1]) + 1 if len(broken) else 0


def margin(logits: Tensor, answer: int) -> Tensor:
    """`[…]` of `logits […, vocabulary]`: of the answer less that of the best other token."""
    others = logits.clone()
    others[..., answer] = -torch.inf
    return logits[..., answer] - others.amax(-1)


def shuffled_context(subject: Subject, masked: Batch, place: int, rng: np.random.Generator) -> Batch:
    """The tokens of a batch of one in random order, but for special ones and the one at `place`."""
    moved = (~subject.special(masked.ids[0])).cpu().numpy()
    moved[place] = False
    ids, at = masked.ids.clone(), np.flatnonzero(moved)
    ids[0, at] = masked.ids[0, rng.permutation(at).tolist()]
    return Batch(ids, masked.mask, masked.sequences, masked.offsets)


@torch.no_grad()
def restored(subject: Subject, clean: Batch, corrupt: Batch, place: int, answer: int) -> np.ndarray | None:
    """`[layers + 1]`: share of the margin that the clean stream at `place` restores, behind no layer, the first, …;
    None where clean and corrupt margins differ by less than `LEAST_MARGIN`. Of a subject with one stack."""
    sites = ["layers.0.resid_pre", *(f"layers.{layer}.resid_post" for layer in range(subject.n_layers))]
    run = subject.run(clean, capture=sites)
    read = subject.reading_position(place)
    final = (run.final, subject.run(corrupt, logits=False).final)
    ends = [float(margin(subject.head(x)[0, read].double(), answer)) for x in final]
    if abs(ends[0] - ends[1]) < LEAST_MARGIN:
        return None
    shares = []
    for site in sites:

        def patched(x: Tensor, site: str = site) -> Tensor:
            x = x.clone()
            x[:, read] = run.captured[site][:, read]
            return x

        with hookpoints_edited(subject, {site: patched}):
            logits = subject.head(subject.hidden(corrupt.ids, corrupt.mask))[0, read]
        shares.append((float(margin(logits.double(), answer)) - ends[1]) / (ends[0] - ends[1]))
    return np.asarray(shares)


def coherence(subject: Subject, dictionary: Dictionary, batch: Batch, place: int, answer: int, rival: int) -> float:
    """See the module; NaN where no influence reaches embeddings."""
    names = [subject.tokenizer.convert_ids_to_tokens(token) for token in (answer, rival)]
    target = parse_target(f"diff:{place}:{names[0]}:{names[1]}", subject, batch)
    graph = build_graph(frame(subject, dictionary, target.prepare(subject, batch), target), max_features=MAX_FEATURES)
    reached = influence(graph.matrix, graph.target)[graph.tokens].numpy()
    at = np.asarray([graph.position_of(node) for node in range(graph.tokens.start, graph.tokens.stop)])
    context = (~subject.special(batch.ids[0])).cpu().numpy()
    context[place] = False
    distance = np.where(context, np.abs(np.arange(len(context)) - place), np.iinfo(np.int64).max)
    far = context.copy()
    far[np.argsort(distance, kind="stable")[:NEAREST]] = False
    return float(reached[far[at]].sum() / reached.sum()) if reached.sum() > 0 else float("nan")


def committed(
    subject: Subject, dictionary: Dictionary | None, batch: Batch, place: int, rng: np.random.Generator
) -> Committed:
    """Of the token at `place` of a batch of one, masked; without a dictionary there is no coherence."""
    masked = masked_copies(subject, batch, [[place]])
    lens = logit_lens(subject, masked, [subject.reading_position(place)]).logits[:, 0, 0].double()
    best = lens[-1].topk(2).indices.tolist()
    p = lens[-1].softmax(-1)
    shares = restored(subject, masked, shuffled_context(subject, masked, place, rng), place, best[0])
    return Committed(
        best[0] == int(batch.ids[0, place]),
        float(-torch.special.xlogy(p, p).sum()),
        from_which_on((margin(lens, best[0]) > 0).cpu().numpy()),
        float("nan") if shares is None else from_which_on(shares >= HALF),
        float("nan") if dictionary is None else coherence(subject, dictionary, batch, place, *best),
    )


def level_rows(found: list[Committed], weights: np.ndarray) -> list[dict[str, Any]]:
    """Means of each measure over right and wrong answers and their difference; `weights [1 + draws, tokens]`."""
    right, rows = np.asarray([one.right for one in found]), []
    for name in ("entropy", *MEASURES):
        values = np.asarray([getattr(one, name) for one in found])
        known = ~np.isnan(values)
        means = {}
        for side, at in (("right", right & known), ("wrong", ~right & known)):
            with np.errstate(invalid="ignore"):
                means[side] = weights[:, at] @ values[at] / weights[:, at].sum(1)
        means["wrong_less_right"] = means["wrong"] - means["right"]
        row: dict[str, Any] = {"measure": name, "tokens": int(known.sum()), "wrong_tokens": int((~right & known).sum())}
        for side, draws in means.items():
            row |= {side: float(draws[0]), f"{side}_ci": interval(draws[1:])}
        rows.append(row)
    return rows


def detector_rows(found: list[Committed], molecule: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
    """AUROC of wrong answers by each measure in the direction of `SIGNS`, of entropy with all, fitted on other
    molecules, and of that with the measures exchanged between tokens; `gain`: over entropy, paired."""
    columns = {name: np.asarray([getattr(one, name) for one in found]) for name in SIGNS}
    known = ~np.isnan(np.stack([*columns.values()])).any(0)
    wrong = ~np.asarray([one.right for one in found])[known]
    if min(wrong.sum(), (~wrong).sum()) < LEAST:
        return [{"detector": "–", "tokens": int(known.sum()), "reason": f"fewer than {LEAST} right or wrong answers"}]
    x = {name: sign * columns[name][known][:, None] for name, sign in SIGNS.items()}
    groups, weights = molecule[known], weights[:, known]
    every = np.concatenate([x[name] for name in SIGNS], 1)
    mixed = np.random.default_rng(0).permutation(len(wrong))
    exchanged = np.concatenate([every[:, :1], every[mixed, 1:]], 1)
    scores = {
        **x,
        "entropy, fitted": held_out(x["entropy"], wrong, groups),
        "all, fitted": held_out(every, wrong, groups),
    }
    scores["all, fitted, others exchanged"] = held_out(exchanged, wrong, groups)
    draws = {name: auroc(score, wrong.astype(float), weights) for name, score in scores.items()}
    rows = []
    for name, values in draws.items():
        gain = values - draws["entropy, fitted" if "fitted" in name else "entropy"]
        about = {"detector": name, "tokens": len(wrong), "wrong": int(wrong.sum())}
        rows.append({
            **about, "auroc": float(values[0]), "auroc_ci": interval(values[1:]),
            "gain": float(gain[0]), "gain_ci": interval(gain[1:]),
        })  # fmt: skip
    return rows


@study(
    "commitment", "molm: the layer from which on an answer holds, and coherence with the context, as error detectors"
)
def commitment(setting: Setting) -> Outcome:
    n_molecules, n_sites = (60, 8) if setting.quick else (200, 12)
    subject, rng = load_subject(SUBJECT), np.random.default_rng(setting.seed)
    dictionary, found, molecule = load_dictionary(DICTIONARY, subject), [], []
    texts = molecules(subject, n_molecules, setting.seed)
    for i, text in setting.progress(list(enumerate(texts)), "when molm commits itself"):
        batch = subject.tokenize([text])
        sites = np.flatnonzero(~subject.special(batch.ids[0]).cpu().numpy())
        for place in sorted(rng.permutation(sites)[:n_sites].tolist()):
            found.append(committed(subject, dictionary, batch, place, rng))
            molecule.append(i)
    groups = np.asarray(molecule)
    weights = group_weights([str(m) for m in molecule], DRAWS, setting.seed)
    levels, detectors = level_rows(found, weights), detector_rows(found, groups, weights)
    return Outcome({"levels": levels, "detectors": detectors}, notes(detectors, found, subject.n_layers))


def notes(detectors: list[dict[str, Any]], found: list[Committed], n_layers: int) -> tuple[str, ...]:
    lacking = sum(np.isnan(one.causal) for one in found)
    size = (
        f"{n_layers} layers; layer 0 is the stream before the first. {lacking} of {len(found)} tokens have no causal "
        f"layer: their margin changes by less than {LEAST_MARGIN} when the context is in random order. Intervals over "
        "molecules."
    )
    by = {row["detector"]: row for row in detectors}
    if "all, fitted" not in by:
        return f"No verdict: {detectors[0]['reason']}.", size
    said = ", ".join(f"{name} {by[name]['auroc']:.2f}" for name in SIGNS)
    low, high = by["all, fitted"]["gain_ci"]
    verdict = "adds to" if low > 0 else "does not add to"
    return (
        f"As detectors of errors, AUROC: {said}. With entropy the three {verdict} what entropy says: "
        f"{by['all, fitted']['gain']:+.3f} [{low:+.3f}, {high:+.3f}].",
        size,
    )

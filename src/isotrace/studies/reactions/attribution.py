"""Which precursor atom does a product atom come from: few heads in one pass, beside what others use (METHODS §6).

1. accuracy   top-1 atom and molecule on held-out reactions with reference maps: few heads, the head that RXNMapper's
              package reads, attention rollout, integrated gradients, and one precursor atom masked after the other
2. chosen     how the heads were chosen: on discovery reactions, of patents that no reported one is from
3. heads      what heads point at and what their removal costs: the chosen ones and the package's on reported
              reactions, all that were candidates on discovery ones
4. context    whether a masked product atom follows when the precursor atom it comes from is another, and by which heads
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import LogisticRegression

from isotrace.base.errors import InputError
from isotrace.base.settings import expanded
from isotrace.interventions import Heads, Values, mean_values
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.studies.atom_mapping import NAMED, SOURCE, Masked, masked, patent_maps, read_cases, unmasked
from isotrace.studies.head_removal import without
from isotrace.studies.reactions.context import altered, context_rows
from isotrace.studies.reactions.scores import Attention, Head, Hits, attention, hits, integrated, left_out, same_token
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.subject import Subject, load_subject

Row = dict[str, Any]
OWN = f"RXNMapper's own head, {NAMED[0]}.{NAMED[1]}"
EQUAL, WEIGHTED, ROLLOUT = "few heads, equal weights", "few heads, logistic weights", "attention rollout"
SAME, RANDOM = "an atom of the same token, at random", "an atom at random"
GRADIENTS, LEAVE_ONE_OUT = "integrated gradients", "one atom masked after the other"
COSTS = {OWN: 1, EQUAL: 1, WEIGHTED: 1, ROLLOUT: 1, SAME: 0, RANDOM: 0, GRADIENTS: 48}
"""Forward passes for one product atom, a backward pass being two."""
NUMBERS = (1, 2, 3, 4, 6, 8)
"""Of heads, from which the discovery reactions choose."""


@dataclass(frozen=True)
class Sizes:
    """max_tokens: of a reaction. n_discovery: reactions to choose heads on, n_held others for their means. n_report:
    reactions reported on, the first n_causal also by integrated gradients and by masking atoms. n_candidates: heads
    whose removal is measured, those that point best. n_effect: reported reactions on which it is measured again;
    n_context: those with another atom. n_random: random sets of heads."""

    max_tokens: int
    n_discovery: int
    n_held: int
    n_report: int
    n_causal: int
    n_candidates: int
    n_effect: int
    n_context: int
    n_random: int


QUICK = Sizes(120, 40, 30, 520, 40, 12, 40, 40, 2)
FULL = Sizes(256, 200, 100, 2_000, 500, 96, 300, 300, 20)


@dataclass(frozen=True)
class Parts:
    """Inputs with one product atom masked; no patent is in both parts."""

    held: list[Masked]
    discovery: list[Masked]
    report: list[Masked]


def parts(subject: Subject, rows: list[tuple[str, str]], groups: Sequence[str], sizes: Sizes, seed: int) -> Parts:
    """`groups`: the patent of every row. Raises InputError for fewer reactions than are asked for."""
    rng = np.random.default_rng(seed)
    names = {name: i for i, name in enumerate(rng.permutation(sorted(set(groups))).tolist())}
    order = sorted(rng.permutation(len(rows)).tolist(), key=lambda i: names[groups[i]])
    first, n, start = [], sizes.n_held + sizes.n_discovery, 0
    while start < len(order) and (len(first) < n or groups[order[start]] == groups[order[start - 1]]):
        first += _masked(subject, [rows[order[start]]], sizes, rng, 1)
        start += 1
    report = _masked(subject, [rows[i] for i in order[start:]], sizes, rng, sizes.n_report)
    if len(first) < n or len(report) < sizes.n_causal:
        raise InputError(f"{len(rows)} reactions are too few for this study: give a data folder with all of them.")
    return Parts(first[: sizes.n_held], first[sizes.n_held : n], report)


def _masked(
    subject: Subject, rows: Sequence[tuple[str, str]], sizes: Sizes, rng: np.random.Generator, n: int
) -> list[Masked]:
    """With a product atom masked that has a partner."""
    cases, _ = read_cases(subject, rows, max_tokens=sizes.max_tokens, n=n)
    found = (masked(subject, case, "one", rng) for case in cases)
    return [item for item in found if item is not None and item.asked[0] in item.case.partner]


@dataclass(frozen=True)
class Chosen:
    """`points`, `falls` `[inputs, candidates]`, on discovery reactions: whether a head points at the right atom, and
    the fall of the metric without it. `accuracy`: of the first n by the product of their means, n of NUMBERS; `heads`,
    `weights`: those chosen."""

    candidates: list[Head]
    points: np.ndarray
    falls: np.ndarray
    accuracy: dict[int, float]
    heads: list[Head]
    weights: list[float]


def choose(subject: Subject, items: list[Masked], reference: Values, n_candidates: int, setting: Setting) -> Chosen:
    """By causal effect × agreement; no reported reaction has a say."""
    seen, target = _pointed(subject, items)
    right = torch.stack([heads.argmax(-1) == t for heads, t in zip(seen, target, strict=True)]).double()
    n_heads = right.shape[-1]
    best = right.mean(0).flatten().sort(descending=True, stable=True).indices[:n_candidates].tolist()
    candidates = [(i // n_heads, i % n_heads) for i in best]
    points, falls = _measured(subject, items, candidates, reference, setting, "discovery")
    order = np.argsort(-points.mean(0) * np.maximum(falls.mean(0), 0), kind="stable")
    ranked = [candidates[i] for i in order]
    accuracy = {}
    for n in (n for n in NUMBERS if n <= len(ranked)):
        summed = [torch.stack([heads[head] for head in ranked[:n]]).sum(0) for heads in seen]
        accuracy[n] = float(np.mean([int(s.argmax()) == t for s, t in zip(summed, target, strict=True)]))
    n = max(accuracy, key=lambda n: (accuracy[n], -n))
    rows = torch.cat([torch.stack([heads[head] for head in ranked[:n]], -1) for heads in seen]).numpy()
    labels = np.concatenate([np.arange(heads.shape[-1]) == t for heads, t in zip(seen, target, strict=True)])
    fitted = LogisticRegression(max_iter=1_000).fit(rows, labels)
    return Chosen(candidates, points, falls, accuracy, ranked[:n], fitted.coef_[0].tolist())


def _pointed(subject: Subject, items: list[Masked]) -> tuple[list[torch.Tensor], list[int]]:
    """(attention `[layers, heads, precursors]` of the masked atom, which precursor atom is right) of every input."""
    seen = [attention(subject, item, item.asked).heads[:, :, 0] for item in items]
    return seen, [item.case.precursors.index(item.case.partner[item.asked[0]]) for item in items]


def _measured(
    subject: Subject, items: list[Masked], heads: Sequence[Head], reference: Values, setting: Setting, part: str
) -> tuple[np.ndarray, np.ndarray]:
    """(whether it points right, fall of the metric without it), each `[inputs, heads]`."""
    seen, target = _pointed(subject, items)
    right = np.array([[float(a[head].argmax() == t) for head in heads] for a, t in zip(seen, target, strict=True)])
    clean = without(subject, items, [], reference)[0]
    each = setting.progress(list(heads), f"heads removed, {part}")
    return right, np.stack([clean - without(subject, items, [head], reference)[0] for head in each], 1)


def scorers(chosen: Chosen, rng: np.random.Generator) -> dict[str, Callable[[Attention, Masked, Sequence[int]], Any]]:
    """Those that need one pass, or none."""
    return {
        OWN: lambda seen, item, asked: seen.of([NAMED], [1.0]),
        EQUAL: lambda seen, item, asked: seen.of(chosen.heads, [1.0] * len(chosen.heads)),
        WEIGHTED: lambda seen, item, asked: seen.of(chosen.heads, chosen.weights),
        ROLLOUT: lambda seen, item, asked: seen.rolled,
        SAME: lambda seen, item, asked: same_token(item, asked, rng),
        RANDOM: lambda seen, item, asked: torch.from_numpy(rng.random((len(asked), len(item.case.precursors)))),
    }


def accuracy_rows(subject: Subject, report: list[Masked], chosen: Chosen, sizes: Sizes, setting: Setting) -> list[Row]:
    rng, rows = np.random.default_rng(setting.seed), []
    settings = {"nothing masked": [unmasked(item.case) for item in report], "the atom itself masked": report}
    for name, items in settings.items():
        found: dict[str, list[Hits]] = {}
        best: dict[str, list[int]] = {}
        for n, item in enumerate(setting.progress(items, f"scores, {name}")):
            seen = attention(subject, item, item.asked)
            scores = {key: score(seen, item, item.asked) for key, score in scorers(chosen, rng).items()}
            if name != "nothing masked" and n < sizes.n_causal:
                scores |= {GRADIENTS: integrated(subject, item), LEAVE_ONE_OUT: left_out(subject, item)}
            for key, values in scores.items():
                found.setdefault(key, []).append(hits(item, item.asked, values))
                best.setdefault(key, []).append(int(values[0].argmax()))
        rows += [_accuracy(name, key, found, best, setting.seed) for key in found]
    return rows


def _accuracy(name: str, key: str, found: dict[str, list[Hits]], best: dict[str, list[int]], seed: int) -> Row:
    """Intervals are over reactions; the gain on the own head is paired, on the reactions that both have."""
    here = found[key]
    asked, atom, molecule = (np.array([getattr(hit, what) for hit in here]) for what in ("asked", "atom", "molecule"))
    own = np.array([hit.atom for hit in found[OWN][: len(here)]])
    weights = bootstrap_weights(len(here), 2_000, seed)
    row: Row = {"input": name, "method": key, "reactions": len(here), "atoms": int(asked.sum())}
    for what, values in (("atom", atom), ("molecule", molecule), ("gain_on_own_head", atom - own)):
        row[what] = float(values.sum() / asked.sum())
        row[f"{what}_ci"] = interval((weights @ values) / (weights @ asked))
    causal = best.get(LEAVE_ONE_OUT, [])
    same = np.array([a == b for a, b in zip(best[key], causal, strict=False)], float)
    row["as_masking_atoms"] = float(same.mean()) if len(same) else float("nan")
    row["as_masking_atoms_ci"] = mean_interval(same, seed)
    return row | {"passes": str(COSTS.get(key, "1 + precursor atoms"))}


def head_rows(
    part: str, heads: Sequence[Head], right: np.ndarray, falls: np.ndarray, chosen: Chosen, seed: int
) -> list[Row]:
    """A head that points right but whose removal changes nothing is a reporter, not a cause."""
    rows = []
    for head, points, fall in zip(heads, right.T, falls.T, strict=True):
        low, high = mean_interval(fall, seed)
        rows.append({
            "part": part, "head": f"{head[0]}.{head[1]}", "chosen": head in chosen.heads, "named": head == NAMED,
            "inputs": len(fall), "points": float(points.mean()), "points_ci": mean_interval(points, seed),
            "costs": float(fall.mean()), "costs_ci": (low, high),
            "verdict": "cause" if low > 0 else "reporter" if points.mean() > 0.5 else "neither",
        })  # fmt: skip
    return rows


def attributed(subject: Subject, found: Parts, sizes: Sizes, setting: Setting) -> Outcome:
    """The study at any size."""
    reference = mean_values(subject, Heads(), [item.batch for item in found.held])
    chosen = choose(subject, found.discovery, reference, sizes.n_candidates, setting)
    few = list(dict.fromkeys([*chosen.heads, NAMED]))
    measured = _measured(subject, found.report[: sizes.n_effect], few, reference, setting, "reported")
    rng = np.random.default_rng((setting.seed, 1))
    swapped = [item for one in found.report if (item := altered(subject, one, rng))][: sizes.n_context]
    tables: dict[str, list[Row]] = {
        "accuracy": accuracy_rows(subject, found.report, chosen, sizes, setting),
        "chosen": [
            {
                "heads": n, "accuracy": share, "taken": n == len(chosen.heads), "reactions": len(found.discovery),
                "names": ", ".join(f"{layer}.{head}" for layer, head in chosen.heads[:n]),
            }
            for n, share in chosen.accuracy.items()
        ],
        "heads": [
            *head_rows("reported", few, *measured, chosen, setting.seed),
            *head_rows("discovery", chosen.candidates, chosen.points, chosen.falls, chosen, setting.seed),
        ],
        "context": context_rows(subject, swapped, chosen.heads, NAMED[1], reference, sizes.n_random, setting.seed),
    }  # fmt: skip
    return Outcome(tables, tuple(_notes(tables)))


def _notes(tables: dict[str, list[Row]]) -> list[str]:
    notes = []
    for row in tables["accuracy"]:
        if row["method"] in (EQUAL, WEIGHTED):
            low, high = row["gain_on_own_head_ci"]
            side = "no different from" if low <= 0 <= high else "better than" if low > 0 else "worse than"
            notes.append(
                f"{row['input']}: {row['method']} find {row['atom']:.1%} of atoms, {side} {OWN} "
                f"({row['gain_on_own_head']:+.1%} [{low:+.1%}, {high:+.1%}], {row['reactions']} reactions)."
            )
    for row in tables["heads"]:
        if row["verdict"] == "reporter":
            notes.append(
                f"Head {row['head']} points right ({row['points']:.0%}), its removal costs nothing: a reporter."
            )
    notes.append("Single atoms count as the map names them: of atoms that symmetry makes equal, one; a lower bound.")
    return notes


@study("reaction_attribution", "Which precursor atom a product atom comes from: few heads in one pass, beside others")
def reaction_attribution(setting: Setting) -> Outcome:
    """Reference maps are the patents', which are not bundled: ISOTRACE_DATA names the folder, see `patent_maps`."""
    folder = os.environ.get("ISOTRACE_DATA")
    if not folder:
        raise InputError(
            "this study needs atom maps that are not RXNMapper's own: set ISOTRACE_DATA to a folder that has "
            "reactions/uspto50k_test_patent_mapped.csv."
        )
    rows = patent_maps(Path(expanded(folder)))
    table = pl.read_csv(Path(expanded(folder)) / "reactions" / "uspto50k_test_patent_mapped.csv", infer_schema=False)
    sizes, subject = QUICK if setting.quick else FULL, load_subject(SOURCE)
    return attributed(subject, parts(subject, rows, table["patent_id"].to_list(), sizes, setting.seed), sizes, setting)

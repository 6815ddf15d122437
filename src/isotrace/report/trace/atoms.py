"""The picture of the elements, atoms or residues: signed, in the target's unit, beside what hiding each does."""

import json
from importlib.resources import files
from typing import Any

import numpy as np

from isotrace.attribution.screen.screen import hide
from isotrace.attribution.trace import Traced
from isotrace.attribution.units import hiding_first, not_judged, reads_maxima
from isotrace.datasets.annotated import read
from isotrace.report.page import number, plural
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.stats.metrics import spearman

DRAWS = 1_000


def unit_rows(traced: Traced) -> list[dict[str, Any]]:
    """Elements in the order they came in, with what their domain calls them. `score`: the mean of the signed effect
    over the spellings, where graphs were drawn of several, with its standard deviation `sd`; else `effect`, that of the
    text as it is. `hidden`: by how much the target falls when the element is hidden, measured, the mean over the
    spellings; None where it is not measured. `mass`: share of the circuit's influence in the text as it is."""
    spelled, names, rows = traced.spellings, traced.domain.names(traced.reading), []
    for i, (mass, effect) in traced.unit_scores.elements.items():
        row = {"score": effect, "mass": mass, "effect": effect, "sd": None, "hidden": traced.hidden.get(i)}
        if spelled is not None and spelled.effects is not None:
            over = spelled.effects[:, i]
            row |= {"score": float(over.mean()), "sd": float(over.std(ddof=1))}
        if spelled is not None:
            measured = spelled.hidden[:, i]
            row["hidden"] = float(measured.mean()) if np.isfinite(measured).all() else None
        rows.append({"index": i, **names[i]} | row)
    return rows


def substructures_of(traced: Traced) -> list[dict[str, Any]]:
    """The domain's substructures in the sequence (functional groups, rings, halogens), which may overlap: by how much
    the target falls when one is hidden in the text as it is (`effect`), and when as many random elements are
    (`random`), measured as for `--quick`. None of a beginning, nor where the subject has no mask token."""
    subject, batch, domain = traced.frame.frozen.subject, traced.frame.batch, traced.domain
    if traced.begun is not None or subject.mask_id is None or not domain.substructures:
        return []
    written, seed = read(subject, domain, traced.reading.text)[1], traced.config.seed
    found = hide(subject, domain, written, batch, traced.target, seed, elements=False)[2]
    about = [sorted({e for p in one.at for e in traced.reading.units[p].about}) for one in found]
    return [
        {"name": one.name, "elements": own, "effect": one.effect, "random": one.random}
        for one, own in zip(found, about, strict=True)
    ]


def group_rows(traced: Traced) -> list[dict[str, Any]]:
    """The parts that the domain names, every element in one (see `Domain.parts`), those that move the target most
    first. `hidden`: by how much the target falls when the whole group is hidden, measured, the mean over the spellings
    where there are several, with their standard deviation `sd`; None where nothing can be hidden. `beyond`: |hidden|
    exceeds `sd`, or there is none. `picture`: the sum of the scores of its elements. None of a beginning.
    """
    spelled, rows = traced.spellings, []
    for i, group in enumerate(traced.groups):
        over = np.asarray([traced.group_falls[i]]) if spelled is None else spelled.groups[:, i]
        effects = np.asarray([[traced.unit_scores.elements[e][1] for e in group.elements]])
        if spelled is not None and spelled.effects is not None:
            effects = spelled.effects[:, list(group.elements)]
        known, several = bool(np.isfinite(over).all()), len(over) > 1
        mean, sd = float(over.mean()), float(over.std(ddof=1)) if several else None
        row: dict[str, Any] = {"name": group.name, "elements": list(group.elements)}
        row |= {"hidden": mean if known else None, "sd": sd if known else None}
        row |= {"beyond": known and (sd is None or abs(mean) > sd), "picture": float(effects.sum(1).mean())}
        rows.append(row)
    return sorted(rows, key=lambda row: -abs(row["hidden"] or 0.0))


def spelling_rows(traced: Traced) -> dict[str, Any] | None:
    """The target and the elements over the spellings; None where there are no others. `told`: what `mean` and `sd` of
    the elements are of, as `shown` of `picture`: `score`, their effects through the graph, or `hidden`, what hiding
    them does; `mass` is None then."""
    found = traced.spellings
    if found is None:
        return None
    low, high = mean_interval(found.correlations, traced.config.seed)
    masses = [None] * found.told.shape[1] if found.masses is None else found.masses.mean(0).tolist()
    return {
        "spellings": [{"text": s, "value": float(v)} for s, v in zip(found.texts, found.values, strict=True)],
        "told": "hidden" if found.effects is None else "score",
        "units": [
            {"index": i, "mean": float(told.mean()), "sd": float(told.std(ddof=1)), "mass": mass}
            for i, (told, mass) in enumerate(zip(found.told.T, masses, strict=True))
        ],
        "rank_correlation": {"mean": float(found.correlations.mean()), "ci": [low, high]},
        "target_sd": float(found.values.std(ddof=1)),
    }


def picture(traced: Traced, units: list[dict[str, Any]]) -> dict[str, Any]:
    """What belongs to the picture as a whole: which entry of `units` it shows, over how many spellings it is, the
    target's mean and spread over them, and how the elements' scores rank beside the measured effects of hiding them
    (Spearman, bootstrap over elements)."""
    spelled, effects, subject = traced.spellings, traced.circuit_effects, traced.frame.frozen.subject
    values = np.asarray([traced.value]) if spelled is None else spelled.values
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    both = np.asarray([(u["score"], u["hidden"]) for u in units if u["hidden"] is not None], dtype=float).reshape(-1, 2)
    draws = np.full(2, np.nan)
    if len(both) > 2:
        weights = bootstrap_weights(len(both), DRAWS, traced.config.seed)
        draws = spearman(both[:, :1], both[:, 1], np.concatenate([np.ones((1, len(both))), weights]))
    unsettled, moved = None, abs(effects.full - effects.empty)
    if sd is not None and sd > moved:
        unsettled = (
            f"Written differently, the same {traced.domain.name} gets other values: "
            f"{number(float(values.mean()))} ± {number(sd)} {traced.target.unit} over {len(values)} spellings. That is "
            f"more than all features together move the target ({number(moved)}): what follows explains this spelling, "
            f"not the {traced.domain.name}."
        )
    unseen = _not_hidden(traced) if len(both) < 3 else None
    return {
        "shown": "hidden" if unseen is None and hiding_first(subject, traced.domain, traced.target) else "score",
        "spellings": len(values),
        "mean": float(values.mean()),
        "sd": sd,
        "hidden_spearman": float(draws[0]),
        "hidden_spearman_ci": list(interval(draws[1:])),
        "hidden_reason": unseen,
        "unsettled": unsettled,
        "trust": trust(traced),
    }


def _not_hidden(traced: Traced) -> str:
    subject = traced.frame.frozen.subject
    if subject.mask_id is None:
        one = traced.domain.element
        return f"{subject.source} has no mask token, so no {one} can be hidden from it and its target read again"
    return f"fewer than three {traced.domain.element}s can be hidden here"


def trust(traced: Traced) -> str:
    """How far such pictures go on targets of this kind, from the table of `isotrace reproduce atom_truth --full`."""
    probe, table = traced.target.probe, json.loads((files("isotrace") / "assets" / "atom_truth.json").read_text())
    kind = "token" if probe is None else "maximum" if reads_maxima(traced.target) else probe.task
    found = None if not_judged(traced.domain) else table["kinds"].get(kind)
    if found is None:
        things = plural(traced.domain.name)
        return f"How far such pictures of {things} can be trusted has not been measured for such targets."
    told = "; ".join(
        f"{row['about']} {row['value']:.2f} [{row['ci'][0]:.2f}, {row['ci'][1]:.2f}], random {row['random']:.2f}"
        for row in found
    )
    return f"How far to trust such a picture, where the right atoms are known ({table['command']}): {told}."

"""Circuits: which way of choosing holds on inputs that it never saw?

For every molecule and target, circuits of several sizes chosen on the input (`effects`: halving) or on the input and
single-token changes of it (`learned`: a mask), both free-running, beside matched random circuits and as many neurons
chosen either way. Judged by |M_C − M| on the input, and as a mean over held-out members: changes at positions where
nothing was changed to learn from.
"""

from typing import Any

import numpy as np
import torch

from isotrace.attribution.ablation import Nodes, feature_values
from isotrace.attribution.circuits.learned import around_of
from isotrace.attribution.circuits.masked import Masked
from isotrace.attribution.circuits.search import CIRCUITS, Search
from isotrace.attribution.trace import TraceConfig
from isotrace.attribution.verification import matched_controls
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.saving import load_dictionary
from isotrace.interventions.components import Values
from isotrace.interventions.hookpoints import Neurons
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.effects.inputs import DICTIONARY, SUBJECT, TABLES, Case, each, neuron_means
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.subject import Batch, Subject, load_subject

MOLECULES, CONTROLS = {True: 2, False: 12}, 4
WAYS = ("effects", "learned")


@study("circuits", "molm: circuits by effects or by a learned mask, on held-out changes of the input")
def run(setting: Setting) -> Outcome:
    subject = load_subject(SUBJECT)
    dictionary = load_dictionary(DICTIONARY, subject)
    means = neuron_means(subject)
    measure = lambda kind, case: measured(subject, dictionary, means, kind, case, setting.seed)  # noqa: E731
    rows = [row for found in each(subject, dictionary, MOLECULES[setting.quick], setting, measure) for row in found]
    table = [summarised(kind, share, rows, setting.seed) for kind in TABLES for share in TraceConfig().sizes]
    return Outcome({"circuits": table, "molecules": rows}, notes(table))


def measured(
    subject: Subject, dictionary: Dictionary, means: Values, kind: str, case: Case, seed: int
) -> list[dict[str, Any]]:
    framed, shares = case.frame, TraceConfig().sizes
    sizes = [max(1, round(share * case.graph.n_active)) for share in shares]
    everything = torch.cat([torch.cartesian_prod(torch.tensor([layer]), torch.arange(framed.n_tokens),
                                                 torch.arange(len(m))) for layer, m in enumerate(means)])  # fmt: skip
    rest = framed.batch, case.target
    candidates, reference = case.graph.feature_nodes, feature_values(dictionary, "mean")
    features = Search(subject, Features(dictionary), reference, *rest, candidates, seed)
    neurons = Search(subject, Neurons(), means, *rest, everything, seed)
    around = around_of(features).held_out
    ids = torch.cat([framed.batch.ids, around.ids])
    members = Batch(ids, framed.batch.mask.expand(len(ids), -1), (), ())
    with torch.no_grad():
        full = case.target.value(subject, members, case.target.hidden(subject, members)).double()
    found = {}
    for name, search in (("features", features), ("neurons", neurons)):
        for way in WAYS:
            found[f"{name}_{way}"] = [errors(search, members, full, nodes) for nodes in CIRCUITS[way](search, sizes)]
    chosen = CIRCUITS["effects"](features, sizes)
    found["random"] = []
    for nodes in chosen:
        drawn = matched_controls(framed, dictionary.density, nodes, CONTROLS, seed)
        found["random"].append(np.mean([errors(features, members, full, one) for one in drawn], 0))
    empty = errors(features, members, full, chosen[0][:0])
    about = {"target": kind, "smiles": case.smiles, "asked": case.target.name}
    rows = []
    for i, (share, size) in enumerate(zip(shares, sizes, strict=True)):
        row = about | {"share": share, "n": size, "empty_input": empty[0], "empty_held_out": empty[1]}
        for name, pairs in found.items():
            row |= {f"{name}_input": float(pairs[i][0]), f"{name}_held_out": float(pairs[i][1])}
        rows.append(row)
    return rows


@torch.no_grad()
def errors(search: Search, members: Batch, full: torch.Tensor, nodes: Nodes) -> tuple[float, float]:
    """|M_C − M| on the first of `members`, and its mean over the others, in the target's unit."""
    parts = search.subject, search.components, search.reference
    masked = Masked(*parts, nodes, members.ids.shape[1])
    with masked.by(torch.ones(len(nodes))):
        hidden = search.target.hidden(search.subject, members)
    away = (search.target.value(search.subject, members, hidden).double() - full).abs()
    return float(away[0]), float(away[1:].mean())


def summarised(kind: str, share: float, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means over molecules on held-out members, with intervals over molecules; `gain`: by how much the mask is nearer
    than halving, paired."""
    chosen = [row for row in rows if row["target"] == kind and row["share"] == share]
    found: dict[str, Any] = {"target": kind, "share": share, "molecules": len(chosen)}
    values = {name: np.array([row[f"{name}_held_out"] for row in chosen])
              for name in ("empty", "random", "features_effects", "features_learned", "neurons_effects",
                           "neurons_learned")}  # fmt: skip
    values["gain"] = values["features_effects"] - values["features_learned"]
    for name, column in values.items():
        found |= {name: float(column.mean()), f"{name}_ci": mean_interval(column, seed)}
    return found


def notes(table: list[dict[str, Any]]) -> tuple[str, ...]:
    better = sum(row["gain_ci"][0] > 0 for row in table)
    worse = sum(row["gain_ci"][1] < 0 for row in table)
    neurons = sum(row["neurons_learned"] < row["features_learned"] for row in table)
    return (
        "Distances to the model's value in the target's unit, on changes of the input at held-out positions.",
        f"Of {len(table)} pairs of target and size the mask is nearer than halving in {better} and farther in {worse}, "
        f"intervals apart from zero; learned neurons are nearer than learned features in {neurons}.",
    )

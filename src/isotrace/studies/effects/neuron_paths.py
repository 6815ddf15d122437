"""Is one neuron per layer, chosen as a path, what carries a prediction? Paths against sets as large chosen otherwise.

For masked atoms of molecules of the scaffold test part: the neurons of a set at their mean, all else running (removed),
and all neurons but the set at theirs (kept). Compared by the probability of the token.

    integral, published    paths of `neuron_paths`
    activation             the most active neuron of each layer, |a − mean| over positions
    gradients              the neuron of each layer with the largest integrated gradients
    free                   as many neurons with the largest integrated gradients, wherever they stand
    random                 a neuron of each layer, mean over `N_RANDOM` draws
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.discovery.methods import Problem, method_of
from isotrace.discovery.methods.neuron_paths import Joint, best_path
from isotrace.interventions.components import Values
from isotrace.interventions.hookpoints import Neurons
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.effects.inputs import SUBJECT, drawn, kept, neuron_means
from isotrace.studies.planted import kept as circuit_alone
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.subject import Subject, load_subject
from isotrace.subjects.targets import parse_target

MOLECULES = {True: 12, False: 60}
STEPS = {True: 5, False: 20}
N_RANDOM, BEAM = 5, 5
JOINTS: tuple[Joint, ...] = ("integral", "published")
SETS = ("integral", "published", "activation", "gradients", "free", "random")


@study("neuron_paths", "molm: paths of one neuron per layer against other sets as large")
def run(setting: Setting) -> Outcome:
    subject = load_subject(SUBJECT)
    means = neuron_means(subject)
    rows = [
        kept(setting, "mask", text, lambda: measured(subject, means, text, asked, STEPS[setting.quick], setting.seed))  # noqa: B023
        for text, asked in setting.progress(drawn(subject, "mask", MOLECULES[setting.quick], setting.seed), "paths")
    ]
    table = [summarised(name, rows, setting.seed) for name in SETS]
    return Outcome({"neuron_paths": table, "molecules": rows}, notes(table))


def measured(
    subject: Subject, means: Values, text: str, asked: str, n_steps: int, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Probability of the token of the input as it is, and for every set how far it falls when the set is removed
    (`NAME`), and how much of it the set alone keeps (`NAME_kept`)."""
    batch = subject.tokenize([text])
    target = parse_target(asked, subject, batch)
    given, position = target.prepare(subject, batch), int(asked.partition(":")[2])

    def metric(batch: Any, final: Tensor) -> Tensor:
        return subject.head(final[:, position]).softmax(-1)[:, target.positive]

    problem = Problem(subject, Neurons(), given, metric, means)
    whole = float(problem.value())
    row: dict[str, Any] = {"smiles": text, "asked": asked, "probability": whole}
    for name, sets in chosen(problem, n_steps, seed).items():
        removed, alone = (np.mean([circuit_alone(problem, keep ^ flip)[0] for keep in sets]) for flip in (True, False))
        row |= {name: whole - float(removed), f"{name}_kept": float(alone)}
    return row


def chosen(problem: Problem, n_steps: int, seed: int) -> dict[str, list[Tensor]]:
    """Name → sets `[neurons]` bool of all layers, one after the other."""
    activations = problem.components.record(problem.subject, problem.batch)[0]
    active = [(z - r).abs().sum((0, 1, 3)) for z, r in zip(activations, problem.reference, strict=True)]
    gradients = [v[0] for v in method_of("eap_ig")(problem, n_steps=n_steps).over_positions()]
    sizes = [len(a) for a in active]
    paths = {joint: best_path(problem, joint, n_steps, BEAM)[0] for joint in JOINTS}
    rng = torch.Generator().manual_seed(seed)
    random = [_one_each([torch.rand(len(a), generator=rng) for a in active]) for _ in range(N_RANDOM)]
    free = torch.cat(gradients)
    return {
        **{
            joint: [torch.cat([torch.arange(n) == c for c, n in zip(p, sizes, strict=True)])]
            for joint, p in paths.items()
        },
        "activation": [_one_each(active)],
        "gradients": [_one_each(gradients)],
        "free": [torch.isin(torch.arange(len(free)), free.topk(len(active)).indices.cpu())],
        "random": random,
    }


def _one_each(scores: list[Tensor]) -> Tensor:
    return torch.cat([torch.arange(len(s)) == s.argmax().cpu() for s in scores])


def summarised(name: str, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """`fall` and `kept`: share of the probability lost without the set, and left by it alone; intervals over molecules.
    `behind_free`: how much less the set takes away than as many neurons without the constraint."""
    whole = np.array([row["probability"] for row in rows])
    fall, alone, free = (np.array([row[key] for row in rows]) / whole for key in (name, f"{name}_kept", "free"))
    return {
        "set": name, "molecules": len(rows), "fall": float(fall.mean()), "fall_ci": mean_interval(fall, seed),
        "kept": float(alone.mean()), "kept_ci": mean_interval(alone, seed),
        "behind_free": float((free - fall).mean()), "behind_free_ci": mean_interval(free - fall, seed),
    }  # fmt: skip


def notes(table: list[dict[str, Any]]) -> tuple[str, ...]:
    of = {row["set"]: row for row in table}
    path, low = of["integral"], of["integral"]["behind_free_ci"]
    verdict = "less than" if low[0] > 0 else "more than" if low[1] < 0 else "as much as, within the interval,"
    return (
        f"Removing the path takes {path['fall']:.3f} of the probability away: {verdict} as many neurons without the "
        f"constraint ({of['free']['fall']:.3f}); random neurons {of['random']['fall']:.3f}.",
        f"Alone, with all other neurons at their mean, the path keeps {path['kept']:.3f} of it, random neurons "
        f"{of['random']['kept']:.3f}: so few neurons are no circuit.",
    )

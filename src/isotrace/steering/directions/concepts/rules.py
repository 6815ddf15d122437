"""Rules (ActivationReasoning): detect concepts, conclude what follows from them, and write what is concluded.

1. label     every sequence: what the rules speak of, and what they conclude from it
2. detect    a detector for every name, fitted on half of the groups and kept on the other; see `detectors`
3. conclude  on the other half, from what detectors see; what a rule concludes is never taken from a detector
4. edit      the unit decoder rows of the features of every concept that is concluded, summed, at α of a state's length
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import Example
from isotrace.interventions.hookpoints import Hookpoints, Neurons
from isotrace.interventions.writers import Writers
from isotrace.stats.splits import deal
from isotrace.steering import AddEdit
from isotrace.steering.directions.concepts.detectors import Detector, detectors_of, seen
from isotrace.steering.directions.concepts.labels import carried
from isotrace.steering.directions.concepts.rulebase import Closure, RuleBase
from isotrace.steering.directions.direction import Fitting, direction


@dataclass(frozen=True, eq=False)
class Reasoner:
    """`detectors`: of every name of `base`. `held`: rows of the contrast that fitted none of them."""

    fitting: Fitting
    base: RuleBase
    detectors: dict[str, Detector]
    held: np.ndarray

    def closures(self, examples: Sequence[Example]) -> list[Closure]:
        """Of each, what detectors see of the premises and all that follows, with proofs."""
        premises = {name: self.detectors[name] for name in self.base.premises}
        return [self.base.closure(known) for known in seen(self.fitting, premises, examples)]

    def rates(self) -> dict[str, tuple[float, float]]:
        """Name → share of the held-out sequences of the positive and of the negative side in which it is concluded."""
        contrast, found = self.fitting.contrast, dict[str, tuple[float, float]]()
        rows = [i for i in self.held if contrast.side[i]]
        derived = [closure.derived for closure in self.closures([contrast.examples[i] for i in rows])]
        side = contrast.side[rows]
        for name in self.base.heads:
            has = np.asarray([name in names for names in derived])
            found[name] = float(has[side > 0].mean()), float(has[side < 0].mean())
        return found


def reasoner(fitting: Fitting, rules: str, k: int = 10, seed: int = 0) -> Reasoner:
    """Raises InputError as `RuleBase.parse`, `carried` and `detectors_of`, where a half of the groups lacks a side, and
    where a premise is told no better than by chance on the half that its detector was not fitted on."""
    base, contrast = RuleBase.parse(rules), fitting.contrast
    halves = deal(contrast.groups.tolist(), (0.5, 0.5), seed)
    parts = np.flatnonzero(halves == 0), np.flatnonzero(halves == 1)
    for rows in parts:
        contrast.rows(rows)  # raises without a side
    names = (*base.premises, *base.heads)
    detectors = detectors_of(fitting, carried(fitting.subject, contrast, base), names, parts, k)
    for name in base.premises:
        if not (right := detectors[name].sequence.held) > 0.5:
            raise InputError(
                f"{name!r} is told with a balanced accuracy of {right:.2f} on held-out sequences, no better than by "
                "chance: give other layers, features, or more sequences."
            )
    return Reasoner(fitting, base, detectors, parts[1])


@direction(
    "rules", labels="binary or terciles; columns or concepts that the rules speak of", cost="6N F", tuned="rules, α",
    components=Neurons, source="ActivationReasoning 2025",
)  # fmt: skip
def rules(fitting: Fitting, rules: str, k: int = 10, seed: int = 0) -> list[AddEdit]:
    """What rules over concepts conclude from features, written by the features of what is concluded

    `rules`: `nitro and aromatic atom -> alert`, see `rulebase`; names are columns of yes and no, concepts of the
    domain, or concluded; `k` features each. A concept is written for as much as it is concluded more often in positive
    than in negative sequences, and taken away for as much as less often; at α = 0.5 the edit has half of a state's
    length, as published. It is made in the stream behind the block that features write in, of a dictionary that writes
    to several in that to which it writes most, at masked sites, of other subjects from the first token written on.
    Raises InputError for components wider than a number, what is no rule, a name that nobody knows, a concept without
    detector, and where both sides conclude the same."""
    parts = fitting.components
    if not isinstance(parts, Writers):
        raise InputError(f"rules need features or neurons, not {parts.name}s: give --dictionary or neurons.")
    found = reasoner(fitting, rules, k, seed)
    rates = found.rates()
    totals: dict[int, Tensor] = {}
    for name, (positive, negative) in rates.items():
        if positive != negative:
            one = found.detectors[name]
            totals[one.layer] = totals.get(one.layer, 0) + (positive - negative) * row_of(fitting, parts, one)
    if not totals:
        said = ", ".join(f"{name} in {share:.0%}" for name, (share, _) in rates.items())
        raise InputError(f"rules conclude as much on either side ({said}): give others, or another label.")
    edits, writes = [], parts.writes(fitting.subject)
    for layer, total in sorted(totals.items()):
        targets = parts.targets(layer)
        pieces = total.chunk(len(targets))
        most = max(range(len(targets)), key=lambda i: float(pieces[i].norm()))
        site = Hookpoints((stream_of(writes[targets[most]]),))
        edits.append(AddEdit(components=site, layer=0, direction=pieces[most], scale=None, where=fitting.sites))
    return edits


def stream_of(site: str) -> str:
    """The hookpoint of the stream to which `site` adds: behind the block. What an MLP adds may be next to nothing at a
    masked token, and its length is no measure of the state's."""
    block, _, kind = site.rpartition(".")
    return f"{block}.resid_post" if kind in ("mlp_out", "attn_out") else site


def row_of(fitting: Fitting, parts: Writers, one: Detector) -> Tensor:
    """float64 `[targets · d]`: the sum of what its features write, each at unit length."""
    rows = parts.rows(fitting.subject, one.layer, torch.tensor(one.units)).detach().double().cpu()
    return torch.nn.functional.normalize(rows, dim=-1).sum(0)

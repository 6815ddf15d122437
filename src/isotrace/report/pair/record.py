"""From a finished pair, whose model is at hand, to a result that is data alone."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from isotrace.attribution.pairs.measures import Lane, Side, lane_of
from isotrace.attribution.pairs.pair import Paired, chosen
from isotrace.base.runs import to_jsonable
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.report.pair.pair import PairResult
from isotrace.stats.bootstrap import mean_interval, pearson_interval
from isotrace.stats.share import share

CHANGED = 0.1
"""Share of the larger activation by which a feature that is active on both tokens must differ to count as changed."""
STATUSES: tuple[str, ...] = ("only in A", "only in B", "changed", "unchanged", "no partner")


@dataclass(frozen=True)
class PairRecord:
    """A finished pair with the names of its features."""

    paired: Paired
    subject: str
    dictionary: str
    tables: FeatureTables
    name: str | None = None

    def result(self) -> PairResult:
        paired = self.paired
        scale = float(max(np.abs(effects).max(initial=0) for effects in paired.effects))
        readings, weights = [side.reading for side in self._sides], [effects.tolist() for effects in paired.effects]
        drawn = list(paired.domain.draw_pair(readings[0], readings[1], paired.alignment, weights, scale))
        settings = to_jsonable(asdict(paired.config))
        settings["sizes"] = ", ".join(f"{size:g}" for size in settings["sizes"])
        view = {"drawings": drawn, "scale": scale, "settings": settings}
        tables = {
            "features": pl.DataFrame(self.features, infer_schema_length=None),
            "tokens": pl.DataFrame([*self.tokens, *self.unpaired], infer_schema_length=None),
            "controls": pl.DataFrame({"value": paired.swapped.controls}),
        }
        return PairResult(self.summary, to_jsonable(view), tables)

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.paired.a, self.paired.b

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `isotrace trace --against --json` prints; NaN becomes null when it is written."""
        paired = self.paired
        a, b = self._sides
        estimates = paired.swaps.estimates(paired.ranking[: len(paired.measured)])
        r, low, high = pearson_interval(estimates.numpy(), paired.measured, paired.config.seed)
        return {
            "input": a.reading.text,
            "against": b.reading.text,
            "name": self.name,
            "subject": self.subject,
            "dictionary": self.dictionary,
            "target": {
                "kind": a.target.kind,
                "name": a.target.name,
                "unit": a.target.unit,
                "description": a.target.description,
                "value": a.value,
                "against": b.value,
                "difference": a.value - b.value,
            },
            "alignment": {
                "element": paired.domain.element,
                "n_shared": paired.alignment.n_shared,
                "n_tokens": [len(a.tokens), len(b.tokens)],
                "n_aligned": sum(partner is not None for partner in paired.alignment.partner),
                "changed": [sorted(changed) for changed in paired.alignment.changed],
                "partner": list(paired.alignment.partner),
            },
            "circuit": self.circuit,
            "lanes": {
                "input": [self._lane(lane, a.value - b.value) for lane in paired.lanes[0]],
                "against": [self._lane(lane, b.value - a.value) for lane in paired.lanes[1]],
            },
            "verification": {"n_nodes": len(paired.measured), "pearson": r, "pearson_ci": [low, high]},
            "counts": self.counts,
            "features": self.features,
            "tokens": self.tokens,
            "unpaired": self.unpaired,
            "spellings": self.spellings,
            "warnings": self.warnings,
        }

    @cached_property
    def circuit(self) -> dict[str, Any]:
        """Values of T(A) in the target's unit and their distances to T(B), each beside its controls."""
        paired, found = self.paired, self.paired.swapped
        errors, seed, neurons = found.control_errors, paired.config.seed, paired.neurons
        n, values = len(paired.circuit), [None] * len(paired.sizes) if neurons is None else neurons.tolist()
        by_size = [
            {"n": size, "value": value, "error": abs(value - found.other)}
            | {"neurons": other, "neuron_error": None if other is None else abs(other - found.other)}
            for size, value, other in zip(paired.sizes, paired.values.tolist(), values, strict=True)
        ]
        own = next(row for row in by_size if row["n"] == n)
        return {
            "n_features": n,
            "fraction_of_features": n / len(paired.ranking),
            "ablation": paired.config.ablation,
            "value": found.value,
            "error": found.error,
            "rest": found.rest,
            "carries": found.reason is None,
            "reason": found.reason,
            "nothing": {"value": found.own, "error": abs(found.own - found.other)},
            "every": {"n": len(paired.ranking), "value": found.every, "error": abs(found.every - found.other)},
            "beyond": asdict(paired.beyond),
            "sizes": by_size,
            "control": {
                "n": len(errors),
                "error_mean": float(errors.mean()) if len(errors) else float("nan"),
                "error_ci": list(mean_interval(errors, seed)),
                "error_range": np.quantile(errors, [0.025, 0.975]).tolist() if len(errors) else [float("nan")] * 2,
            },
            "neurons": {
                "n": None if neurons is None else n,
                "value": own["neurons"],
                "error": own["neuron_error"],
                "chosen": self._neurons_chosen(by_size),
                "reason": None if neurons is not None else "no sequences are known to take the neurons' mean over",
            },
        }

    def _neurons_chosen(self, by_size: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Of the sizes the one that neurons would take by the rule by which the circuit has its own: a size that is
        the nearest for features is chance's for neurons."""
        if self.paired.neurons is None:
            return None
        errors = np.asarray([row["neuron_error"] for row in by_size])
        a, b = self._sides
        row = by_size[chosen(errors, self.paired.config.tolerance * abs(a.value - b.value))]
        return {"n": row["n"], "value": row["neurons"], "error": row["neuron_error"]}

    def _lane(self, lane: Lane, difference: float) -> dict[str, Any]:
        """`share` of the difference, null where that is within what matched random nodes move, or rounding."""
        spread = float(np.quantile(np.abs(lane.controls), 0.95)) if len(lane.controls) else 0.0
        noise = max(spread, self.paired.swapped.noise)
        return {
            "lane": lane.name,
            "n_tokens": len(lane.tokens),
            "n_nodes": lane.nodes,
            "moved": lane.moved,
            "share": share(lane.moved, difference, noise) if lane.nodes else float("nan"),
            "control_mean": float(lane.controls.mean()) if len(lane.controls) else None,
            "control_ci": list(mean_interval(lane.controls, self.paired.config.seed)) if len(lane.controls) else None,
        }

    @cached_property
    def statuses(self) -> list[tuple[int, int, int, float, float, str]]:
        """(layer, token of A, feature, activation on A, on its partner, status) of every feature active on either."""
        paired, found = self.paired, []
        for layer, (own, other) in enumerate(zip(paired.swaps.own, paired.swaps.other, strict=True)):
            own, other = own[0, :, :, 0], other[0, :, :, 0]
            for position, feature in ((own > 0) | (other > 0)).nonzero().tolist():
                x, y = float(own[position, feature]), float(other[position, feature])
                if paired.alignment.partner[position] is None:
                    status, y = "no partner", float("nan")
                elif x <= 0 or y <= 0:
                    status = "only in B" if x <= 0 else "only in A"
                else:
                    status = "changed" if abs(x - y) > CHANGED * max(x, y) else "unchanged"
                found.append((layer, position, feature, x, y, status))
        return found

    @cached_property
    def counts(self) -> list[dict[str, Any]]:
        """Active features by what their token of A is, and whether they are active on its partner."""
        rows = {lane.name: dict.fromkeys(STATUSES, 0) for lane in self.paired.lanes[0]}
        for _, position, *_, status in self.statuses:
            rows[self._lane_of(position)][status] += 1
        return [{"lane": lane} | row for lane, row in rows.items() if any(row.values())]

    def _lane_of(self, position: int) -> str:
        return lane_of(self.paired.a.reading, position, self.paired.alignment.changed[0])

    @cached_property
    def features(self) -> list[dict[str, Any]]:
        """Nodes of the circuit, largest estimate first. `estimate`: by how much T(A) falls where it is swapped, to
        first order; `measured`: by how much it does, null for what was not swapped by itself."""
        paired, a, b = self.paired, *self._sides
        known = {row[:3]: row[3:] for row in self.statuses}
        located = paired.circuit.tolist()
        named = self.tables.of(list({(layer, feature) for layer, _, feature in located}))
        estimates = paired.swaps.estimates(paired.circuit).tolist()
        found = []
        for place, (layer, position, feature) in enumerate(located):
            x, y, status = known[layer, position, feature]
            partner, row = paired.alignment.partner[position], named.get((layer, feature), {})
            measured = float(paired.measured[place]) if place < len(paired.measured) else None
            found.append(
                {
                    "layer": layer,
                    "feature": feature,
                    "position": position,
                    "token": a.tokens[position],
                    "lane": self._lane_of(position),
                    "partner": partner,
                    "token_against": None if partner is None else b.tokens[partner],
                    "status": status,
                    "activation": x,
                    "activation_against": y,
                    "estimate": estimates[place],
                    "measured": measured,
                    "label": self.tables.label(row),
                    "f1": row.get("f1"),
                }
            )
        return found

    @cached_property
    def tokens(self) -> list[dict[str, Any]]:
        """Tokens of A with their partners. `effect`: by how much T(A) is higher with its own features there than with
        those of B; `effect_against`: by how much T(B) is with its own than with those of A."""
        paired, a, b = self.paired, *self._sides
        found = []
        for position, partner in enumerate(paired.alignment.partner):
            row = {"position": position, "token": a.tokens[position], "elements": list(a.reading.elements[position])}
            row |= {"lane": self._lane_of(position), "effect": float(paired.effects[0][position]), "partner": partner}
            there = (None, None) if partner is None else (b.tokens[partner], float(paired.effects[1][partner]))
            found.append(row | dict(zip(("token_against", "effect_against"), there, strict=True)))
        return found

    @cached_property
    def unpaired(self) -> list[dict[str, Any]]:
        """Tokens of B without a partner in A, in the same columns."""
        paired, b = self.paired, self.paired.b
        nothing = {"position": None, "token": None, "elements": list[int](), "effect": None}
        return [
            nothing
            | {"lane": lane_of(b.reading, place, paired.alignment.changed[1]), "partner": place}
            | {"token_against": b.tokens[place], "effect_against": float(paired.effects[1][place])}
            for place, own in enumerate(paired.alignment.back(len(b.tokens)))
            if own is None
        ]

    @cached_property
    def spellings(self) -> dict[str, Any] | None:
        """Values of other spellings of either, and the standard deviation of their difference, drawn at random."""
        found = self.paired.spellings
        if found is None:
            return None
        sd = float(np.sqrt(sum(values.var(ddof=1) for values in found)))
        means = [float(values.mean()) for values in found]
        return {
            "input": found[0].tolist(),
            "against": found[1].tolist(),
            "mean_difference": means[0] - means[1],
            "difference_sd": sd,
        }

    @cached_property
    def warnings(self) -> list[str]:
        """Plain sentences about what this pair does not show."""
        paired, circuit, unit = self.paired, self.circuit, self.paired.a.target.unit
        difference, found = abs(paired.a.value - paired.b.value), [*paired.alignment.notes]
        if self.spellings is not None and self.spellings["difference_sd"] >= difference:
            found.append(
                f"Other spellings of the two move their difference by {self.spellings['difference_sd']:.2g} {unit} "
                f"(standard deviation), as much as it is itself ({difference:.2g})."
            )
        if circuit["reason"] is not None:
            found.append(f"No small swap carries the difference: {circuit['reason']}.")
        neurons = circuit["neurons"]["chosen"]
        if neurons is not None and neurons["error"] <= circuit["error"]:
            found.append(
                f"{neurons['n']:,} neurons of the model, ranked and chosen alike, come as near to the other value when "
                "they are swapped as the features do."
            )
        if circuit["every"]["error"] > 0.5 * difference > 0:
            found.append(
                f"All features swapped leave {circuit['every']['error']:.2g} of {difference:.2g} {unit}: most of the "
                "difference enters past the features, by embeddings, error terms and tokens without a partner."
            )
        return found

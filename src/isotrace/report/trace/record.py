"""From a finished trace, whose model is at hand, to a result that is data alone."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from isotrace.attribution.graph_files import graph_tensors, origin_of
from isotrace.attribution.supernodes import Supernodes
from isotrace.attribution.trace import Traced
from isotrace.attribution.units import evenness
from isotrace.base.runs import to_jsonable
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.domain import Track
from isotrace.report.trace.atoms import group_rows, picture, spelling_rows, substructures_of, unit_rows
from isotrace.report.trace.effects import agreement, checked, disagreement, effects_of
from isotrace.report.trace.graph.kinds import lanes, node_kind
from isotrace.report.trace.graph.neuronpedia import graph_json, target_probability
from isotrace.report.trace.graph.trace_graph import control_frame, edge_frame, intervention_frame, supernodes_of
from isotrace.report.trace.payload import on_structure, trace_view
from isotrace.report.trace.trace import TraceResult
from isotrace.report.trace.tracks import track_rows
from isotrace.stats.bootstrap import mean_interval
from isotrace.subjects.probe import judged, probe_folder

SMEARED = 0.75
"""`evenness` of the elements' scores from which on a trace warns: that of normal noise."""


@dataclass(frozen=True)
class Record:
    """A finished trace with the names of its features and the dictionary's fidelity (None where unknown).

    `given`: supernodes whose groups and names are taken over; None groups anew. `structure`: a PDB
    or mmCIF file of a protein, to be coloured. `tracks`: labels to set beside the elements. `map`: its tracing map,
    see `report.maps.traced_map`."""

    traced: Traced
    subject: str
    dictionary: str
    tables: FeatureTables
    fidelity: dict[str, Any] | None
    name: str | None = None
    given: Supernodes | None = None
    structure: Path | None = None
    tracks: tuple[Track, ...] = ()
    map: dict[str, Any] | None = None

    def result(self) -> TraceResult:
        traced = self.traced
        slug = f"isotrace-{traced.target.name}".replace(":", "-")
        labels = {(f["layer"], f["feature"]): f["label"] for f in self.features}
        identity = self.dictionary, traced.frame.dictionary
        subject = traced.frame.frozen.subject
        origin = origin_of(subject, *identity, traced.reading.text, traced.tokens, traced.target, traced.value)
        # the pruned graph's edges, since all of them take megabytes per input
        tensors, header = graph_tensors(traced.graph, traced.pruned, origin, "kept")
        view = {
            "page": (page := trace_view(self)),
            "structure": on_structure(self),
            "viewer": graph_json(traced, page["edges"], scan=self.subject, slug=slug, labels=labels),
            "graph": header,
        }
        tables = {
            "features": pl.DataFrame(self.features, infer_schema_length=None),
            "units": pl.DataFrame(self.units, infer_schema_length=None),
            "syntax": pl.DataFrame(self.summary["syntax"], infer_schema_length=None),
            "edges": edge_frame(self),
            "interventions": intervention_frame(self),
            "controls": control_frame(self),
        }
        return TraceResult(self.summary, to_jsonable(view), tables, tensors)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `isotrace trace --json` prints; NaN becomes null when it is written."""
        traced, graph = self.traced, self.traced.graph
        target = traced.target
        return {
            "input": traced.reading.text,
            "name": self.name,
            "domain": traced.domain.name,
            "element": traced.domain.element,
            "field": traced.domain.field,
            "subject": self.subject,
            "dictionary": self.dictionary,
            "target": {
                "kind": target.kind,
                "name": target.name,
                "value": traced.value,
                "unit": target.unit,
                "description": target.description,
                "probability": target_probability(traced),
                **self._judged,
            },
            "graph": {
                "n_nodes": int(traced.pruned.nodes.sum()),
                "n_edges": len(traced.pruned.kept),
                "n_nodes_full": graph.n_nodes,
                "n_edges_full": int((graph.matrix != 0).sum()),
                "n_active_features": graph.n_active,
                "replacement_score": traced.scores.replacement,
                "completeness_score": traced.scores.completeness,
                "max_completeness_error": graph.completeness_error(),
                "agreement": agreement(traced),
            },
            "fidelity": self.fidelity or {"free_running": None, "teacher_forced": None},
            "circuit": self.circuit,
            "verification": checked(traced),
            "picture": self.picture,
            "units": self.units,
            "substructures": substructures_of(traced),
            "groups": group_rows(traced),
            "tracks": track_rows(self.tracks, self.units),
            "bonds": [
                {"elements": list(u.about), "token": u.text, "pos": p, "score": s}
                for p, u, written, s in self._positions()
                if not written and len(u.about) == 2
            ],
            "syntax": [
                {"token": u.text, "pos": p, "score": s, "effect": float(traced.unit_scores.signed[p])}
                for p, u, written, s in self._positions()
                if not written
            ],
            "lanes": lanes(traced, self.features),
            "features": self.features,
            "supporters": self.pushes(traced.supporters.tolist()),
            "opponents": self.pushes(traced.opponents.tolist()),
            "spellings": spelling_rows(traced),
            "map": self.map,
            "warnings": self.warnings,
        }

    @property
    def _judged(self) -> dict[str, Any]:
        """Whether the subject knows what a probe reads, see `isotrace.subjects.probe.judged`."""
        if self.traced.target.probe is None:
            return {"knows": None, "verdict": None}
        files, text = self.traced.frame.frozen.subject.files, self.traced.target.name.partition(":")[2]
        return judged(probe_folder(files.folder, self.subject, text)[0])

    @cached_property
    def circuit(self) -> dict[str, Any]:
        """The circuit's numbers, in the target's unit, each beside its controls."""
        traced, found = self.traced, self.traced.circuit_effects
        choice, neurons, seed = traced.choice, traced.neurons, traced.config.seed
        mean = lambda v: float(v.mean()) if len(v) else float("nan")  # noqa: E731
        return {
            "n_features": len(traced.circuit),
            "fraction_of_features": len(traced.circuit) / traced.graph.n_active,
            "ablation": traced.config.ablation,
            "way": traced.config.circuit,
            **{name: getattr(found, name) for name in ("full", "empty", "value", "error", "removed")},
            "reproduces": found.reason is None,
            **{name: getattr(found, name) for name in ("reason", "kept", "lost")},
            "sizes": [
                {"n": n, "value": value, "error": abs(value - found.full)}
                for n, value in zip(choice.sizes, choice.values.tolist(), strict=True)
            ],
            "control": {
                "n": len(found.control_values),
                "error_mean": mean(found.control_errors),
                "error_ci": list(mean_interval(found.control_errors, seed)),
                "removed_mean": mean(found.control_removed),
                "removed_ci": list(mean_interval(found.control_removed, seed)),
                "spread": found.spread,
            },
            "neurons": {
                "n": neurons.n if neurons else None,
                "value": neurons.value if neurons else None,
                "error": abs(neurons.value - found.full) if neurons else None,
                "reason": None if neurons else "no sequences are known to take the neurons' mean over",
            },
        }

    def _positions(self):
        return zip(
            range(self.traced.graph.n_tokens),
            self.traced.reading.units,
            self.traced.reading.elements,
            self.traced.unit_scores.positions.tolist(),
            strict=True,
        )

    @cached_property
    def units(self) -> list[dict[str, Any]]:
        return unit_rows(self.traced)

    @cached_property
    def picture(self) -> dict[str, Any]:
        return picture(self.traced, self.units)

    @cached_property
    def supernodes(self) -> Supernodes:
        return supernodes_of(self)

    @cached_property
    def rows(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Annotation of the features of the circuit and of the lists, by (layer, feature), read from the table once."""
        traced = self.traced
        nodes = torch.cat([traced.circuit, traced.supporters, traced.opponents])
        located = traced.graph.feature_nodes[nodes].tolist()
        return self.tables.of(list({(layer, feature) for layer, _, feature in located}))

    def pushes(self, nodes: list[int]) -> list[dict[str, Any]]:
        """Feature nodes with their effects, see `effects_of`."""
        return [self._named(node) | effects_of(self.traced, node) for node in nodes]

    def _named(self, node: int) -> dict[str, Any]:
        """Where a feature node is, the feature's label, and what it is about."""
        layer, position, feature = self.traced.graph.feature_nodes[node].tolist()
        place = {"layer": layer, "feature": feature, "position": position, "token": self.traced.tokens[position]}
        return place | {"label": self.tables.label(self.rows.get((layer, feature), {})), "kind": node_kind(self, node)}

    @cached_property
    def features(self) -> list[dict[str, Any]]:
        """Feature nodes of the circuit, most influential first."""
        traced = self.traced
        order = traced.circuit[traced.pruned.influence[traced.circuit].argsort(descending=True)].tolist()
        numbers = {"influence": traced.pruned.influence, "activation": traced.graph.activations}
        found = []
        for node in order:
            row = self._named(node)
            f1 = self.rows.get((row["layer"], row["feature"]), {}).get("f1")
            told = {name: float(values[node]) for name, values in numbers.items()}
            found.append(row | {"f1": f1} | told | effects_of(traced, node))
        return found

    @cached_property
    def warnings(self) -> list[str]:
        """Plain sentences about what this trace does not show."""
        traced, effects = self.traced, self.traced.circuit_effects
        found, unit, span = [], traced.target.unit, abs(effects.full - effects.empty)
        if self.picture["unsettled"]:
            found.append(self.picture["unsettled"])
        if traced.begun:
            found.append(f"Read as the beginning of a {traced.domain.name}, for it is no whole one: {traced.begun}.")
        if effects.reason is not None:
            found.append(f"No small circuit reproduces this prediction: {effects.reason}.")
        if traced.neurons is not None and abs(traced.neurons.value - effects.full) <= effects.error:
            found.append("As many neurons of the model come as near to its prediction as the circuit's features do.")
        if not np.isfinite(effects.kept) and effects.noise < span:
            found.append(
                f"All features together move the target by {span:.2g} {unit}, less than random circuits differ among "
                f"themselves ({effects.spread:.2g}): no share of it is given."
            )
        moved = np.abs(effects.full - effects.control_removed)
        if len(moved) and abs(effects.full - effects.removed) <= np.quantile(moved, 0.95):
            found.append("Removing the circuit moves the target no more than removing matched random circuits does.")
        found += disagreement(traced)
        if traced.scores.replacement < 0.5:
            share = 1 - traced.scores.replacement
            found.append(f"Most influence passes through error nodes ({share:.0%}): the features miss most of it.")
        if (even := evenness(u[self.picture["shown"]] or 0.0 for u in self.units)) > SMEARED:
            found.append(
                f"Not localised: without their signs, the effects in the picture are spread over {even:.0%} of the "
                f"{traced.domain.element}s, as evenly as noise."
            )
        if traced.graph.completeness_error() > 1e-4:
            found.append("Edges and constants do not add up to 1e-4: treat small edges with care.")
        if self.fidelity is None:
            found.append("The dictionary has no fidelity on its shelf: what it misses of held-out data is unknown.")
        return found

    @property
    def settings(self) -> dict[str, Any]:
        config = to_jsonable(asdict(self.traced.config))
        return config | {"sizes": ", ".join(f"{share:g}" for share in config["sizes"])}

    def node_id(self, node: int) -> str:
        graph = self.traced.graph
        layer, position, kind = graph.layer_of(node), graph.position_of(node), graph.kind_of(node)
        if kind == "feature":
            return f"f{layer}_{int(graph.feature_nodes[node, 2])}_{position}"
        if kind in ("error", "target"):
            return "target" if kind == "target" else f"e{layer}_{position}"
        group, place = self.place(node)
        earlier = [name for name, _ in graph.embeddings[:group]].count(kind)
        return f"{kind[0]}{earlier or ''}_{place}"

    def place(self, node: int) -> tuple[int, int]:
        """(index in `graph.embeddings`, place in that stream) of an embedding node; a decoder's place p is token
        p − 1's."""
        return divmod(node - self.traced.graph.tokens.start, self.traced.graph.n_tokens)

    def side(self, node: int) -> str:
        """`encoder` or `decoder` in a subject that has both, which then has two nodes of a kind at a position; else
        empty, as for the target."""
        graph, sizes = self.traced.graph, self.traced.frame.frozen.subject.stack_sizes
        if len(sizes) == 1 or node == graph.target:
            return ""
        if (layer := graph.layer_of(node)) >= 0:
            return "encoder" if layer < sizes[0] else "decoder"
        group = self.place(node)[0]
        kinds = [kind for kind, _ in graph.embeddings]
        return "decoder" if kinds[group] in kinds[:group] else "encoder"

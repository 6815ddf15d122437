"""A trace as people meet it: a JSON summary, tables, drawings, and one page that opens offline."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isotrace.attribution.percolation import NetworkView
from isotrace.attribution.supernodes import Supernodes
from isotrace.attribution.trace import Traced
from isotrace.base.runs import Run, to_jsonable
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.molecule.drawing import draw_molecule
from isotrace.report.page import render_trace
from isotrace.report.trace.neuronpedia import graph_json, target_probability
from isotrace.report.trace.payload import trace_payload
from isotrace.report.trace.trace_graph import (
    control_frame,
    edge_frame,
    graph_file,
    intervention_frame,
    network_of_trace,
    supernodes_of,
)
from isotrace.stats.bootstrap import mean_interval, pearson_interval

UNSTABLE = 4.0  # sufficiency beyond which the difference it divides by is called small


@dataclass(frozen=True)
class Trace:
    """A finished trace with the names of its features and the dictionary's fidelity (None where unknown).

    `supernode_file`: a `supernodes.json` whose groups and names are taken over; None groups anew."""

    traced: Traced
    subject: str
    dictionary: str
    tables: FeatureTables
    fidelity: dict[str, Any] | None
    name: str | None = None
    supernode_file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `isotrace trace --json` prints; NaN becomes null when it is written."""
        return dict(self._summary)

    @cached_property
    def _summary(self) -> dict[str, Any]:
        traced, graph, circuit = self.traced, self.traced.graph, self.traced.circuit_effects
        target = traced.target
        seed = traced.config.seed
        frozen = pearson_interval(traced.nodes.predicted.numpy(), traced.nodes.frozen.numpy(), seed)
        real = pearson_interval(traced.nodes.predicted.numpy(), traced.nodes.free_running.numpy(), seed)
        controls = (circuit.control_sufficiency, circuit.control_necessity)
        sufficiency, necessity = (mean_interval(values, seed) for values in controls)
        mean = lambda v: float(v.mean()) if len(v) else float("nan")  # noqa: E731
        return {
            "input": traced.sequence,
            "name": self.name,
            "subject": self.subject,
            "dictionary": self.dictionary,
            "target": {
                "kind": target.kind,
                "name": target.name,
                "value": traced.value,
                "unit": target.unit,
                "description": target.description,
                "probability": self._probability,
            },
            "graph": {
                "n_nodes": int(traced.pruned.nodes.sum()),
                "n_edges": int(traced.pruned.edges.sum()),
                "n_nodes_full": graph.n_nodes,
                "n_edges_full": int((graph.matrix != 0).sum()),
                "n_active_features": graph.n_active,
                "replacement_score": traced.scores.replacement,
                "completeness_score": traced.scores.completeness,
                "max_completeness_error": graph.completeness_error(),
            },
            "fidelity": self._fidelity,
            "circuit": {
                "n_features": len(traced.circuit),
                "fraction_of_features": len(traced.circuit) / graph.n_active,
                "sufficiency": circuit.sufficiency,
                "necessity": circuit.necessity,
                "full": circuit.full,
                "empty": circuit.empty,
                "ablation": traced.config.ablation,
                "by_influence": {
                    "sufficiency": traced.by_influence.sufficiency,
                    "necessity": traced.by_influence.necessity,
                },
                "control": {
                    "n": len(circuit.control_sufficiency),
                    "sufficiency_mean": mean(circuit.control_sufficiency),
                    "sufficiency_ci": list(sufficiency),
                    "necessity_mean": mean(circuit.control_necessity),
                    "necessity_ci": list(necessity),
                },
            },
            "verification": {
                "n_nodes": len(traced.nodes.nodes),
                "pearson_frozen": frozen[0],
                "pearson_frozen_ci": list(frozen[1:]),
                "pearson_free_running": real[0],
                "pearson_free_running_ci": list(real[1:]),
            },
            "units": self.units,
            "bonds": [
                {"atoms": list(u.atoms), "token": u.text, "pos": p, "score": s}
                for p, u, s in self._positions()
                if u.kind in ("bond", "ring") and len(u.atoms) == 2
            ],
            "syntax": [{"token": u.text, "pos": p, "score": s} for p, u, s in self._positions() if u.kind != "atom"],
            "features": self.features,
            "spellings": self._spellings,
            "warnings": self.warnings,
        }

    @cached_property
    def supernodes(self) -> Supernodes:
        """Raises InputError for a `supernode_file` that cannot be used."""
        return supernodes_of(self)

    @cached_property
    def network(self) -> NetworkView:
        return network_of_trace(self)

    @property
    def _probability(self) -> float | None:
        probe = self.traced.target.probe
        return None if probe is not None and probe.task == "regression" else target_probability(self.traced)

    @property
    def _fidelity(self) -> dict[str, Any]:
        return self.fidelity or {"free_running": None, "teacher_forced": None}

    def _positions(self):
        return zip(
            range(self.traced.graph.n_tokens),
            self.traced.units,
            self.traced.unit_scores.positions.tolist(),
            strict=True,
        )

    @cached_property
    def units(self) -> list[dict[str, Any]]:
        """Atoms in the order they were written."""
        return [
            {"index": i, "symbol": self.traced.mol.GetAtomWithIdx(i).GetSymbol(), "score": mass, "signed": signed}
            for i, (mass, signed) in self.traced.unit_scores.atoms.items()
        ]

    @cached_property
    def rows(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Annotation of the circuit's features by (layer, feature), read from the table once."""
        located = self.traced.graph.feature_nodes[self.traced.circuit].tolist()
        return self.tables.of(list({(layer, feature) for layer, _, feature in located}))

    @cached_property
    def features(self) -> list[dict[str, Any]]:
        """Feature nodes of the circuit, most influential first."""
        traced = self.traced
        order = traced.circuit[traced.pruned.influence[traced.circuit].argsort(descending=True)].tolist()
        located = [tuple(row) for row in traced.graph.feature_nodes[order].tolist()]
        found = []
        for node, (layer, position, feature) in zip(order, located, strict=True):
            row = self.rows.get((layer, feature), {})
            found.append(
                {
                    "layer": layer,
                    "feature": feature,
                    "position": position,
                    "token": traced.tokens[position],
                    "label": self.tables.label(row),
                    "f1": row.get("f1"),
                    "influence": float(traced.pruned.influence[node]),
                    "effect": float(traced.effects[node]),
                    "activation": float(traced.graph.activations[node]),
                }
            )
        return found

    @cached_property
    def warnings(self) -> list[str]:
        """Plain sentences about what this trace does not show."""
        traced, circuit = self.traced, self.traced.circuit_effects
        found = []
        if traced.scores.replacement < 0.5:
            share = 1 - traced.scores.replacement
            found.append(f"Most influence passes through error nodes ({share:.0%}): the features miss most of it.")
        if traced.unit_scores.spread > 0.75:
            found.append(f"Not localised: the mass is spread over {traced.unit_scores.spread:.0%} of the atoms.")
        if not np.isfinite(circuit.sufficiency):
            found.append("Ablating every feature leaves the target as it is: sufficiency and necessity are undefined.")
        if circuit.sufficiency > UNSTABLE:
            moved = abs(circuit.full - circuit.empty)
            found.append(
                f"All features together move the target by only {moved:.2g} {traced.target.unit}, the circuit alone by "
                f"{circuit.sufficiency:.0f} times that: sufficiency and necessity divide by a small difference."
            )
        for name in ("sufficiency", "necessity"):
            value, controls = getattr(circuit, name), getattr(circuit, f"control_{name}")
            if len(controls) and np.isfinite(value) and value <= np.quantile(controls, 0.95):
                found.append(f"The circuit's {name} ({value:.2f}) is no better than that of matched random circuits.")
        if traced.graph.completeness_error() > 1e-4:
            found.append("Edges and constants do not add up to 1e-4: treat small edges with care.")
        if self.fidelity is None:
            found.append("The dictionary has no fidelity on its shelf: what it misses of held-out data is unknown.")
        return found

    @property
    def _spellings(self) -> dict[str, Any] | None:
        found = self.traced.spellings
        if found is None:
            return None
        low, high = mean_interval(found.correlations, self.traced.config.seed)
        return {
            "spellings": [{"smiles": s, "value": float(v)} for s, v in zip(found.smiles, found.values, strict=True)],
            "units": [
                {"index": i, "mean": float(m), "sd": float(s)}
                for i, (m, s) in enumerate(zip(found.masses.mean(0), found.masses.std(0, ddof=1), strict=True))
            ],
            "rank_correlation": {"mean": float(found.correlations.mean()), "ci": [low, high]},
            "target_sd": float(found.values.std(ddof=1)),
        }

    def to_frame(self) -> pl.DataFrame:
        """Circuit features, one row each."""
        return pl.DataFrame(self.features, infer_schema_length=None)

    def payload(self, manifest: dict[str, Any]) -> dict[str, Any]:
        return trace_payload(self, manifest)

    def html(self, manifest: dict[str, Any] | None = None) -> str:
        return render_trace(self.payload(manifest or {}))

    def _repr_html_(self) -> str:
        return draw_molecule(
            self.traced.mol, {u["index"]: u["score"] for u in self.units}, size=(420, 300), diverging=False
        )

    def save(self, run: Run) -> None:
        """Write report.html, trace.json, the graph (graph.safetensors, and graph.json for viewers), supernodes.json,
        network.json, tables and drawings into the run folder. Raises as `supernodes` does."""
        traced = self.traced
        summary = self.to_dict()
        run.json("trace", summary)
        labels = {(f["layer"], f["feature"]): f["label"] for f in self.features}
        slug = f"isotrace-{traced.target.name}".replace(":", "-")
        run.json("graph", graph_json(traced, scan=self.subject, slug=slug, labels=labels))
        run.bytes("graph.safetensors", graph_file(self))
        run.json("supernodes", self.supernodes)
        run.json("network", self.network.to_dict())
        run.table("features", self.to_frame())
        run.table("units", pl.DataFrame(self.units, infer_schema_length=None))
        run.table("syntax", pl.DataFrame(summary["syntax"], infer_schema_length=None))
        run.table("edges", edge_frame(self))
        run.table("interventions", intervention_frame(self))
        run.table("controls", control_frame(self))
        page = self.payload(
            {"seed": traced.config.seed, **to_jsonable(asdict(traced.config)), **run.manifest["versions"]}
        )
        run.text("molecule_mass.svg", page["molecule"]["mass_svg"])
        run.text("molecule_signed.svg", page["molecule"]["signed_svg"])
        run.text("report.html", render_trace(page))

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

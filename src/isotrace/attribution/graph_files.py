"""Attribution graphs as files: one safetensors file whose header says what the graph is of.

A file holds all edges, or only those of the pruned graph, as its header's `edges` says; then what the others add is in
`unselected`, so that Σ edges + constant + unselected is a node's pre-activation either way.

Tensors: `feature_nodes [n_features, 3]`, `activations [n_features]`, `edges [2, n_edges]` (target, source) and
`weights [n_edges]` of the edges that are not zero, `preactivation`, `constant`, `unselected [n]`, and of the pruned
graph `kept_nodes [n]`, `kept_edges [n_edges]` (bool) and `influence [n]`. The header is JSON under the key `isotrace`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from isotrace.attribution.graph import AttributionGraph
from isotrace.attribution.influence import Pruned, blocks_of
from isotrace.base.errors import InputError, RunError
from isotrace.base.files import write_whole
from isotrace.base.identity import identity
from isotrace.base.settings import STRICT
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target

FORMAT, FORMAT_VERSION, KEY = "isotrace-graph", 2, "isotrace"
Edges = Literal["all", "kept"]
FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True, config=STRICT)
class GraphOrigin:
    """What a graph was computed from. `subject_id`, `dictionary_id`: identities; `architecture`: the
    dictionary's. `target`: as it is written on the command line; `target_description`, `value` in `unit`:
    what it is. `tokens`: those of the input as the target needs it."""

    subject: str
    subject_id: str
    dictionary: str
    dictionary_id: str
    architecture: str
    sequence: str
    tokens: tuple[str, ...]
    target: str
    target_description: str
    value: float
    unit: str


@dataclass(frozen=True, config=STRICT)
class _Header:
    format: Literal["isotrace-graph"]
    format_version: Literal[2]
    origin: GraphOrigin
    n_layers: PositiveInt
    n_tokens: PositiveInt
    edges: Edges
    embeddings: tuple[tuple[str, NonNegativeInt], ...]
    n_active: NonNegativeInt
    n_nodes: PositiveInt
    tensors_sha256: str


class SavedGraph(NamedTuple):
    graph: AttributionGraph
    pruned: Pruned
    origin: GraphOrigin
    edges: Edges


HEADER = TypeAdapter(_Header)


def origin_of(
    subject: Subject,
    dictionary_name: str,
    dictionary: Dictionary,
    sequence: str,
    tokens: tuple[str, ...],
    target: Target,
    value: float,
) -> GraphOrigin:
    """What to save beside a graph of `subject` and `dictionary`, which was loaded as `dictionary_name`."""
    return GraphOrigin(
        subject=subject.source,
        subject_id=identity(subject),
        dictionary=dictionary_name,
        dictionary_id=identity(dictionary),
        architecture=dictionary.config.architecture,
        sequence=sequence,
        tokens=tokens,
        target=target.name,
        target_description=target.description,
        value=value,
        unit=target.unit,
    )


def graph_tensors(
    graph: AttributionGraph, pruned: Pruned, origin: GraphOrigin, saved: Edges = "all"
) -> tuple[dict[str, Tensor], str]:
    """The file's tensors and header. Raises RunError for a graph that holds NaN or infinity."""
    edges, kept = torch.nonzero(graph.matrix), pruned.kept @ torch.tensor([graph.n_nodes, 1])
    chosen = torch.isin(edges @ torch.tensor([graph.n_nodes, 1]), kept)
    edges, chosen = (edges[chosen], chosen[chosen]) if saved == "kept" else (edges, chosen)
    rows, columns = edges.unbind(1)
    weights = graph.matrix[rows, columns]
    # 0 where every edge is saved, and not only nearly so
    dropped: Tensor | int = 0
    if saved == "kept":
        sums = [graph.matrix[part].double().sum(1) for part in blocks_of(torch.arange(graph.n_nodes), graph.n_nodes)]
        dropped = torch.cat(sums).index_add(0, rows, -weights.double())
    tensors = {
        "feature_nodes": graph.feature_nodes,
        "activations": graph.activations,
        "edges": edges.T.to(torch.int32),
        "weights": weights,
        "preactivation": graph.preactivation,
        "constant": graph.constant,
        "unselected": graph.unselected + dropped,
        "kept_nodes": pruned.nodes,
        "kept_edges": chosen,
        "influence": pruned.influence,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise RunError(f"{bad[0]} of the graph hold NaN or infinity: it cannot be saved, trace in float32 or float64.")
    shape = {
        "n_layers": graph.n_layers,
        "n_tokens": graph.n_tokens,
        "edges": saved,
        "embeddings": graph.embeddings,
        "n_active": graph.n_active,
        "n_nodes": graph.n_nodes,
    }
    header = _Header(FORMAT, FORMAT_VERSION, origin, **shape, tensors_sha256=_digest(tensors))
    return tensors, HEADER.dump_json(header).decode()


def save_graph(
    path: str | Path, graph: AttributionGraph, pruned: Pruned, origin: GraphOrigin, saved: Edges = "all"
) -> None:
    """Raises RunError as `graph_tensors`, and if the disk refuses."""
    tensors, header = graph_tensors(graph, pruned, origin, saved)
    write_whole(Path(path), save(tensors, {KEY: header}))


def load_graph(path: str | Path, *, subject: Subject | None = None, dictionary: Dictionary | None = None) -> SavedGraph:
    """The graph with dense matrices, as it was saved, bitwise the same; without the edges that were left out.

    Raises InputError for a path that cannot be read, a file that holds no graph of this format, or a graph of another
    `subject` or `dictionary` than those given; RunError for a damaged one: truncated or altered, with NaN,
    edges between nodes it does not have, or edges that run in a circle or backwards.
    """
    name, again = Path(path).name, "trace the input again"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    try:
        tensors = load(content)
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, ValueError, OSError) as error:
        raise RunError(f"{name} is truncated or no graph file ({_short(error)}): {again}.") from None
    if text is None:
        raise InputError(f"{name} is a safetensors file, but no graph: give the graph.safetensors of a trace.")
    header = _header(text, name, again)
    _check_origin(header.origin, name, subject, dictionary)
    if fault := _fault(header, tensors):
        raise RunError(f"{name} is damaged ({fault}): {again}.")
    return _built(header, tensors)


def _header(text: str, name: str, again: str) -> _Header:
    try:
        found = json.loads(text)
    except ValueError:
        raise RunError(f"{name} is damaged (its header is no JSON): {again}.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{name} is no graph of isotrace: give the graph.safetensors of a trace.")
    if found.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{name} has graph format {found.get('format_version')}, not {FORMAT_VERSION}: {again}.")
    try:
        return HEADER.validate_json(text)
    except ValidationError as error:
        what = error.errors()[0]
        fault = ".".join(map(str, what["loc"])) + ": " + what["msg"]
        raise RunError(f"{name} is damaged ({fault}): {again}.") from None


def _check_origin(origin: GraphOrigin, name: str, subject: Subject | None, dictionary: Dictionary | None) -> None:
    if subject is not None and identity(subject) != origin.subject_id:
        raise InputError(f"{name} is a graph of {origin.subject}, not of {subject.source}: give its own subject.")
    if dictionary is not None and identity(dictionary) != origin.dictionary_id:
        raise InputError(f"{name} was made with {origin.dictionary}, whose weights differ: give its own dictionary.")


def _fault(header: _Header, tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the tensors, None if nothing is."""
    n = header.n_nodes
    given = tensors.get("feature_nodes"), tensors.get("edges")
    n_features, n_edges = (0 if t is None or t.ndim != 2 else t.shape[axis] for axis, t in enumerate(given))
    expected = {
        "feature_nodes": ((n_features, 3), (torch.int64,)),
        "activations": ((n_features,), FLOATS),
        "edges": ((2, n_edges), (torch.int32,)),
        "weights": ((n_edges,), FLOATS),
        "preactivation": ((n,), FLOATS),
        "constant": ((n,), FLOATS),
        "unselected": ((n,), FLOATS),
        "kept_nodes": ((n,), (torch.bool,)),
        "kept_edges": ((n_edges,), (torch.bool,)),
        "influence": ((n,), FLOATS),
    }
    if differing := sorted(expected.keys() ^ tensors.keys()):
        return f"tensor {differing[0]} is {'unknown' if differing[0] in tensors else 'missing'}"
    for name, (shape, dtypes) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            return f"{name} is {tensor.dtype} {[*tensor.shape]}"
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} hold NaN or infinity"
    if n != n_features + (header.n_layers + len(header.embeddings)) * header.n_tokens + 1:
        return f"{n} nodes do not fit its features, layers and tokens"
    if len(header.origin.tokens) != header.n_tokens:
        return f"{len(header.origin.tokens)} tokens are named, but it has {header.n_tokens}"
    layer, position, _ = tensors["feature_nodes"].unbind(1)
    if bool(((layer < 0) | (layer >= header.n_layers) | (position < 0) | (position >= header.n_tokens)).any()):
        return "a feature lies outside its layers and tokens"
    edges = tensors["edges"].long()
    if bool(((edges < 0) | (edges >= n)).any()):
        return "an edge names a node it does not have"
    layers = torch.cat([layer, _layers_behind(header)])
    if bool((layers[edges[0]] <= layers[edges[1]]).any()) or bool(
        ((edges[0] >= n_features) & (edges[0] < n - 1)).any()
    ):
        return "an edge does not lead to a later layer, so that edges may run in a circle"
    kept = edges[:, tensors["kept_edges"]]
    if not bool(tensors["kept_nodes"][kept].all()):
        return "a kept edge names a node that was pruned"
    return None if _digest(tensors) == header.tensors_sha256 else "its checksum differs"


def _layers_behind(header: _Header) -> Tensor:
    """Layers of errors, embeddings and target, in their order."""
    errors = torch.arange(header.n_layers).repeat_interleave(header.n_tokens)
    embeddings = torch.full((len(header.embeddings) * header.n_tokens,), -1)
    return torch.cat([errors, embeddings, torch.tensor([header.n_layers])])


def _built(header: _Header, tensors: Mapping[str, Tensor]) -> SavedGraph:
    n, (rows, columns) = header.n_nodes, tensors["edges"].long()
    matrix, edges = torch.zeros(n, n, dtype=tensors["weights"].dtype), tensors["edges"].long().T
    matrix[rows, columns] = tensors["weights"]
    graph = AttributionGraph(
        feature_nodes=tensors["feature_nodes"],
        activations=tensors["activations"],
        matrix=matrix,
        preactivation=tensors["preactivation"],
        constant=tensors["constant"],
        unselected=tensors["unselected"],
        n_layers=header.n_layers,
        n_tokens=header.n_tokens,
        embeddings=header.embeddings,
        n_active=header.n_active,
    )
    return SavedGraph(
        graph,
        Pruned(tensors["kept_nodes"], edges[tensors["kept_edges"]], tensors["influence"]),
        header.origin,
        header.edges,
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def _short(error: Any) -> str:
    return str(error).splitlines()[0][:120]

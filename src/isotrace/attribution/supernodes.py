"""Supernodes: features of a circuit that belong together, found without anyone looking (METHODS §5).

1. views      similarity of every two features: same concept (1 or 0, where both are known), cosine of their read
              vectors and of their write vectors, cosine of their activations over positions (co-activation)
2. combined   the mean over the views that are defined for a pair, weighted; cosines keep their sign
3. groups     average linkage on 1 − similarity, cut where two groups are less similar than `threshold` on average
4. stability  positions drawn again with replacement, groups made anew, compared by the adjusted Rand index; the null
              shuffles every feature's activations over the positions, so that co-activation says nothing
5. names      the commonest concept of a group's features, else where most of them fire, to be edited

Nodes of one feature at several positions are one item here: they share vectors and concept.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from isotrace.attribution.graph import Frame
from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.settings import STRICT, Seed
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.stats.bootstrap import interval
from isotrace.stats.metrics import adjusted_rand

FORMAT, FORMAT_VERSION = "isotrace-supernodes", 2
Key = tuple[NonNegativeInt, NonNegativeInt]
"""(layer, feature)."""


@dataclass(frozen=True, config=STRICT)
class SupernodeConfig:
    """`threshold`: mean similarity from which on two groups are one. `concept`, `read`, `write`, `coactivation`:
    weights of the views. `n_resamples`: of the stability and of its null."""

    threshold: float = 0.5
    concept: NonNegativeFloat = 1.0
    read: NonNegativeFloat = 0.5
    write: NonNegativeFloat = 0.5
    coactivation: NonNegativeFloat = 1.0
    n_resamples: Annotated[int, Field(ge=2)] = 20
    seed: Seed = 0


@dataclass(frozen=True, config=STRICT)
class Stability:
    """Adjusted Rand index between the groups and those of resampled positions: mean and central 95 % of the
    resamples; `null`: the same with shuffled activations. Both are high where concepts and vectors decide alone."""

    adjusted_rand: float
    interval: tuple[float, float]
    null: float
    null_interval: tuple[float, float]


@dataclass(frozen=True, config=STRICT)
class Supernode:
    name: str
    features: tuple[Key, ...]


@dataclass(frozen=True, config=STRICT)
class Supernodes:
    """What `supernodes.json` holds. `config`, `stability`: of the automatic grouping the groups started from; the
    stability is None where it is undefined, for fewer than two features or positions."""

    format: Literal["isotrace-supernodes"]
    format_version: Literal[2]
    dictionary_id: str
    config: SupernodeConfig
    stability: Stability | None
    groups: tuple[Supernode, ...]

    def group_of(self) -> dict[Key, int]:
        return {key: i for i, group in enumerate(self.groups) for key in group.features}


FILE = TypeAdapter(Supernodes)


def activation_profiles(frame: Frame, keys: Sequence[Key]) -> Tensor:
    """Activation of every feature at every position of the frame's input, `[len(keys), tokens]`."""
    rows = []
    for layer, feature in keys:
        active = frame.active.values[layer] * (frame.active.indices[layer] == feature)
        rows.append(active.sum(-1))
    return torch.stack(rows) if rows else torch.zeros(0, frame.n_tokens)


def vectors(dictionary: Dictionary, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
    """(read, write) vectors `[len(keys), d]`; what a feature writes is summed over its target layers, since all of
    them add to one residual stream."""
    reads = [dictionary.W_enc[layer][:, feature] for layer, feature in keys]
    writes = [dictionary.write_vectors(layer, torch.tensor(feature)).sum(0) for layer, feature in keys]
    return torch.stack(reads), torch.stack(writes)


def similarity(
    config: SupernodeConfig,
    concepts: Sequence[str | None],
    read: Tensor,
    write: Tensor,
    profiles: Tensor,
) -> np.ndarray:
    """Steps 1 and 2, `[n, n]` float64, from concepts (None = unknown) and tensors `[n, …]`. A feature that is nowhere
    active in `profiles` has co-activation 0 with every other."""
    return _combined(config, _fixed_views(config, concepts, read, write), _cosine(profiles.double().cpu().numpy()))


def group(similarities: np.ndarray, threshold: float) -> np.ndarray:
    """Step 3: labels `[n]` 0, 1, … in the order of first appearance."""
    if len(similarities) < 2:
        return np.zeros(len(similarities), dtype=int)
    distance = 1 - (similarities + similarities.T) / 2
    np.fill_diagonal(distance, 0)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distance, checks=False), "average")
    _, first, labels = np.unique(fcluster(tree, 1 - threshold, "distance"), return_index=True, return_inverse=True)
    return first.argsort().argsort()[labels]


def find_supernodes(
    config: SupernodeConfig,
    keys: Sequence[Key],
    concepts: Sequence[str | None],
    dictionary: Dictionary,
    profiles: Tensor,
    places: Sequence[str] = (),
) -> Supernodes:
    """Steps 1 to 5. `keys`: distinct features, most important first, which is the order of the groups; `concepts`: of
    each, None where unknown; `profiles [len(keys), samples]`: their activations, over the positions of one input or of
    many; `places`: where each fires, in a word, which names groups without a concept. Raises ValueError for keys that
    repeat or do not match the rest."""
    if len(set(keys)) < len(keys) or not len(keys) == len(concepts) == len(profiles):
        raise ValueError("every feature is named once, with its concept and its activations")
    empty = Supernodes(FORMAT, FORMAT_VERSION, identity(dictionary), config, None, ())
    if not keys:
        return empty
    views = _fixed_views(config, concepts, *vectors(dictionary, keys))
    data = profiles.double().cpu().numpy()
    labels = group(_combined(config, views, _cosine(data)), config.threshold)
    stability = _stability(config, views, data, labels) if min(data.shape) > 1 else None
    groups = []
    for label in range(labels.max() + 1):
        members = np.nonzero(labels == label)[0].tolist()
        known = [concepts[i] for i in members], [places[i] for i in members] if places else []
        groups.append((_name(*known, keys[members[0]]), tuple(keys[i] for i in members)))
    counts, seen = Counter(name for name, _ in groups), Counter()
    named = []
    for name, members in groups:
        seen[name] += 1
        named.append(Supernode(f"{name} ({seen[name]})" if counts[name] > 1 else name, members))
    return replace(empty, stability=stability, groups=tuple(named))


def read_supernodes(path: str | Path, dictionary: Dictionary) -> Supernodes:
    """Raises InputError for a file that cannot be read or is not valid, that names a feature twice, or that belongs to
    another dictionary."""
    name, advice = Path(path).name, "delete it to group anew, or mend it"
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = FILE.validate_python(json.loads(text))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    except ValidationError as error:
        what = error.errors()[0]
        raise InputError(f"{name} is not valid ({'.'.join(map(str, what['loc']))}: {what['msg']}): {advice}.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise InputError(f"{name} is no JSON ({str(error).splitlines()[0]}): {advice}.") from None
    counts = Counter(key for group in found.groups for key in group.features)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise InputError(f"{name} names feature {twice[0][1]} of layer {twice[0][0]} twice: {advice}.")
    if found.dictionary_id != identity(dictionary):
        raise InputError(f"{name} names features of another dictionary: {advice}.")
    return found


def merged(given: Supernodes, automatic: Supernodes) -> Supernodes:
    """The groups of a file, as far as their features are in the circuit, then the automatic groups of what it does not
    name. `automatic` holds every feature of the circuit."""
    present, named = automatic.group_of(), given.group_of()
    kept = [Supernode(g.name, tuple(k for k in g.features if k in present)) for g in given.groups]
    rest = [Supernode(g.name, tuple(k for k in g.features if k not in named)) for g in automatic.groups]
    return replace(automatic, groups=tuple(g for g in [*kept, *rest] if g.features))


def _name(concepts: Sequence[str | None], places: Sequence[str], first: Key) -> str:
    known = Counter(c for c in concepts if c is not None) or Counter(f"unnamed, on {place}" for place in places)
    if not known:
        return f"layer {first[0]}, feature {first[1]}" + (f" and {len(concepts) - 1} more" if len(concepts) > 1 else "")
    return min(known, key=lambda c: (-known[c], c))


def _fixed_views(
    config: SupernodeConfig, concepts: Sequence[str | None], read: Tensor, write: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """(Σ weight · view, Σ weight) of the views that do not depend on activations, `[n, n]` each."""
    text = np.array([c or "" for c in concepts])
    known = (text != "")[:, None] & (text != "")
    total = config.concept * (known & (text[:, None] == text)).astype(float)
    for weight, rows in ((config.read, read), (config.write, write)):
        total = total + weight * _cosine(rows.double().cpu().numpy())
    return total, config.concept * known + config.read + config.write


def _combined(config: SupernodeConfig, views: tuple[np.ndarray, np.ndarray], coactivation: np.ndarray) -> np.ndarray:
    total, weight = views
    return (total + config.coactivation * coactivation) / np.maximum(weight + config.coactivation, 1e-12)


def _cosine(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit @ unit.T


def _stability(
    config: SupernodeConfig, views: tuple[np.ndarray, np.ndarray], data: np.ndarray, labels: np.ndarray
) -> Stability:
    rng = np.random.default_rng(config.seed)
    found, null = [], []
    for _ in range(config.n_resamples):
        drawn = data[:, rng.integers(0, data.shape[1], data.shape[1])]
        for into, rows in ((found, drawn), (null, rng.permuted(drawn, axis=1))):
            other = group(_combined(config, views, _cosine(rows)), config.threshold)
            into.append(float(adjusted_rand(labels, other)))
    return Stability(float(np.mean(found)), interval(np.array(found)), float(np.mean(null)), interval(np.array(null)))

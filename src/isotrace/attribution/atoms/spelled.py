"""Elements over the spellings of a sequence: what belongs to the thing, and what to the way it is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from isotrace.attribution.ablation import feature_values
from isotrace.attribution.circuits.halving import halved
from isotrace.attribution.graph import Frame, build_graph, frame
from isotrace.attribution.influence import prune_to_circuit, total_effects
from isotrace.attribution.units import Elements, group_falls, hidden_effects, hiding_first, unit_scores
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.domains.domain import Domain, Reading, Spelling
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

if TYPE_CHECKING:
    from isotrace.attribution.trace import TraceConfig


@dataclass(frozen=True)
class SpellingScores:
    """`values [spellings]` of the target, and of every element `[spellings, elements]`, in the order of the input, the
    measured effect of hiding it (NaN where it is not measured), and, where a graph was drawn of each, its mass and its
    signed effect, else None; the input's own spelling first. `groups [spellings, groups]`: the measured effects of
    hiding groups of them."""

    texts: tuple[str, ...]
    values: np.ndarray
    masses: np.ndarray | None
    effects: np.ndarray | None
    hidden: np.ndarray
    groups: np.ndarray

    @property
    def told(self) -> np.ndarray:
        """What is pictured of the elements, `[spellings, elements]`: effects, or, without graphs, what hiding does."""
        return self.hidden if self.effects is None else self.effects

    @property
    def correlations(self) -> np.ndarray:
        """Spearman of what is told of each other spelling with the first's, over the elements known in all."""
        ranks = self.told[:, np.isfinite(self.told).all(0)].argsort(1).argsort(1).astype(float)
        with np.errstate(invalid="ignore"):
            return np.asarray([np.corrcoef(ranks[0], row)[0, 1] for row in ranks[1:]])


@dataclass(frozen=True)
class Read:
    """One spelling as the subject reads it: frozen, the elements of its tokens and the target at its place in it, and
    by how much the target falls when an element, or a group of them, is hidden."""

    framed: Frame
    elements: Elements
    target: Target
    hidden: dict[int, float]
    groups: list[float]

    @property
    def value(self) -> float:
        return float(self.target.value(self.framed.frozen.subject, self.framed.batch, self.framed.frozen.actual.final))


def read_spelling(framed: Frame, target: Target, elements: Elements, groups: Sequence[Sequence[int]]) -> Read:
    given = framed.frozen.subject, framed.batch, target, elements
    return Read(framed, elements, target, hidden_effects(*given), group_falls(*given, groups))


def spelling_scores(
    subject: Subject,
    dictionary: Dictionary,
    domain: Domain,
    reading: Reading,
    own: Read,
    groups: Sequence[Sequence[int]],
    share: float,
    config: "TraceConfig",
) -> SpellingScores | None:
    """`own`: the input as `reading` has it. Unless hiding is pictured (`hiding_first`), with graphs of as many features
    in every spelling, to be compared, and circuits of `share` of the active ones; `groups` of elements are hidden
    together. None where it is not defined: for a masked token that is no single element, which other spellings lack,
    for what is behind the end, and where a sequence can be written in one way only."""
    target, elements = own.target, own.elements
    if config.n_spellings == 0 or target.position == len(elements):
        return None
    asked = target.place if target.position is None else target.position
    if asked is not None and len(elements[asked]) != 1:
        return None
    masked = None if asked is None else elements[asked][0]
    others = domain.spellings(reading, config.n_spellings, config.seed)
    reads = (_read(subject, dictionary, domain, spelling, target, masked, groups) for spelling in others)
    at_home = None if _at_home(subject, target, elements, masked) is None else own
    graphs, numbered = not hiding_first(subject, domain, target), range(reading.n_elements)
    found: dict[str, tuple[float, list[float], list[float], list[tuple[float, float]]]] = {}
    for text, read in zip([reading.text, *(s.text for s in others)], chain([at_home], reads), strict=True):
        if read is not None:
            scores = _scores(subject, dictionary, read, share, config) if graphs else {}
            hidden = [read.hidden.get(e, np.nan) for e in numbered]
            found[text] = read.value, hidden, read.groups, [scores.get(e, (0.0, 0.0)) for e in numbered]
    if len(found) < 3:
        return None
    values, hidden, together, tables = (np.asarray(part) for part in zip(*found.values(), strict=True))
    masses, effects = tables.transpose(2, 0, 1) if graphs else (None, None)
    return SpellingScores(tuple(found), values, masses, effects, hidden, together)


def _read(
    subject: Subject,
    dictionary: Dictionary,
    domain: Domain,
    spelling: Spelling,
    target: Target,
    masked: int | None,
    groups: Sequence[Sequence[int]],
) -> Read | None:
    """None if this spelling does not fit, or has no place for the target."""
    try:
        batch: Batch = subject.tokenize([spelling.text])
    except InputError:
        return None
    written = domain.read(spelling.text, subject.tokens(batch.ids[0]), batch.offsets[0])
    elements = [tuple(spelling.original[e] for e in part) for part in written.elements]
    goal = _at_home(subject, target, elements, masked)
    if goal is None:
        return None
    return read_spelling(frame(subject, dictionary, goal.prepare(subject, batch), goal), goal, elements, groups)


def _at_home(subject: Subject, target: Target, elements: Elements, masked: int | None) -> Target | None:
    """The target at the place of the masked element in a spelling. None if this splits it, or begins with it where a
    causal subject has nothing to predict it from."""
    if masked is None:
        return target
    places = [i for i, written in enumerate(elements) if written[:1] == (masked,)]
    if len(places) != 1 or (target.position is not None and subject.predicts_next and places[0] == 0):
        return None
    return replace(target, **{"place" if target.position is None else "position": places[0]})


def _scores(
    subject: Subject, dictionary: Dictionary, read: Read, share: float, config: "TraceConfig"
) -> dict[int, tuple[float, float]]:
    """(mass, signed effect) of every element."""
    graph = build_graph(read.framed, max_features=config.spelling_features)
    size = min(graph.n_features, max(1, round(share * graph.n_active)))
    parts = Features(dictionary), feature_values(dictionary, config.ablation)
    (circuit,) = halved(subject, *parts, read.framed.batch, read.target, graph.feature_nodes, [size])
    pruned = prune_to_circuit(graph, circuit, config.node_threshold, config.edge_threshold)
    return unit_scores(graph, pruned, total_effects(graph), read.elements).elements

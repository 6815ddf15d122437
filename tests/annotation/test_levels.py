"""Levels of a planted dictionary: children below their parents are found, and one that absorbs is caught."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from isotrace.annotation.benchmark.grade import Label
from isotrace.annotation.benchmark.ground import Ground
from isotrace.annotation.levels import Layered, absorption, concepts_of, hierarchy, levels
from isotrace.base.errors import InputError
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import Concept, Labels

N_GROUPS, PER, LENGTH = 6, 4, 12
KINDS = [f"kind {k}" for k in range(N_GROUPS)]
SUBS = [f"kind {k}, sort {s}" for k in range(N_GROUPS) for s in range(PER)]
NAMES = (*KINDS, *SUBS, "length")


def ground(n_sequences: int, rng: np.random.Generator) -> tuple[Ground, np.ndarray]:
    """Every token is of one sort of one kind, or of none (−1)."""
    sort = rng.integers(-PER * N_GROUPS, PER * N_GROUPS, (n_sequences, LENGTH)).clip(-1)
    labels = []
    for row in sort:
        found = [(int(s) // PER, (i,)) for i, s in enumerate(row) if s >= 0]
        found += [(N_GROUPS + int(s), (i,)) for i, s in enumerate(row) if s >= 0]
        labels.append(Labels((*found, (len(NAMES) - 1, (0,))), np.full(len(NAMES), np.nan)))
    table = ConceptTable.of([Concept(n, "planted", "token") for n in NAMES], [LENGTH] * n_sequences, labels)
    unit = SimpleNamespace(text="x", kind="atom")
    reading = SimpleNamespace(text="", units=(unit,) * LENGTH, elements=((),) * LENGTH, n_elements=0)
    return Ground(None, (reading,) * n_sequences, table, {}), sort.ravel()  # pyright: ignore[reportArgumentType]


def planted(absorbs: bool, seed: int = 0, related: bool = True) -> Layered:
    """Parents fire on their kind, children on one sort of it; a parent that is absorbed is silent where they fire. Not
    related: the children of one kind have the decoders of another."""
    rng = np.random.default_rng(seed)
    made, sort = ground(200, rng)
    kind: np.ndarray = np.where(sort >= 0, sort // PER, -1)
    children = np.flatnonzero(np.arange(len(SUBS)) % PER < 2)  # half of the sorts have a feature
    parents = kind[:, None] == np.arange(N_GROUPS)
    own = sort[:, None] == children
    if absorbs:
        parents &= ~own.any(1)[:, None]
    directions = np.eye(32)[:N_GROUPS]
    turned = (children // PER + (0 if related else 1)) % N_GROUPS
    below = 0.6 * directions[turned] + 0.8 * np.eye(32)[N_GROUPS + np.arange(len(children))]
    activations = sparse.csr_matrix(np.concatenate([parents, own], 1).astype(np.float32))
    concepts = (*KINDS, *(SUBS[s] for s in children))
    prefixes = N_GROUPS, N_GROUPS + len(children)
    return Layered(made, activations, np.concatenate([directions, below]), prefixes, concepts, np.arange(200) >= 100)


def test_levels_count_labels_and_score_them():
    layer = planted(False)
    rows = levels(layer, 0)
    assert [(r["prefix"], r["features"], r["alive"], r["labelled"], r["auroc"]) for r in rows] == [
        (6, 6, 6, 1, 1), (18, 12, 12, 1, 1),
    ]  # fmt: skip
    assert rows[0]["labelled_ci"][0] == pytest.approx(0.025 ** (1 / 6))
    concepts = ("length", None, *layer.concepts[2:])
    worse = levels(Layered(layer.ground, layer.activations, layer.decoders, layer.prefixes, concepts, layer.graded), 0)
    assert worse[0]["labelled"] == pytest.approx(5 / 6)
    assert worse[0]["auroc"] < 0.95
    assert worse[1] == rows[1]


def test_children_below_their_parents_are_found():
    found = hierarchy(planted(False), 0)
    assert (found["pairs"], found["implied"]) == (12, 1)
    assert found["null"] < 0.2
    assert found["p"] < 0.01
    nothing = hierarchy(planted(False, related=False), 0)
    assert (nothing["pairs"], nothing["implied"], nothing["p"]) == (0, None, None)


def test_pairs_whose_labels_are_exchanged_are_as_the_null():
    layer = planted(False)
    mixed = (*layer.concepts[1:6], layer.concepts[0], *layer.concepts[6:])
    found = hierarchy(Layered(layer.ground, layer.activations, layer.decoders, layer.prefixes, mixed, layer.graded), 0)
    assert found["implied"] == 0
    assert found["p"] == 1


def test_absorption_is_caught_and_its_absence_too():
    caught, clean = (absorption(planted(absorbs), 0) for absorbs in (True, False))
    assert (caught["parents"], caught["absorbed"], caught["silent"], caught["more"]) == (6, 1, 0, 1)
    assert (clean["parents"], clean["absorbed"], clean["more"]) == (6, 0, 0)
    assert np.isnan(absorption(planted(True, related=False), 0)["absorbed"])


def test_labels_that_name_no_concept_are_none():
    labels = [Label("kind 0", 'carries("kind 0")'), Label("no concept"), Label("anything", "element()")]
    assert concepts_of(labels, NAMES) == ("kind 0", None, None)
    layer = planted(False)
    with pytest.raises(InputError, match="do not fit"):
        Layered(layer.ground, layer.activations, layer.decoders, (6,), layer.concepts, layer.graded)

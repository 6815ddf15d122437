"""What a feature is about: every concept of molecules is chemistry or syntax, and which is which."""

import math

from isotrace.attribution.units import evenness
from isotrace.domains.domain import DOMAINS
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.report.trace.graph.kinds import kind_of

SYNTAX = {"bond symbol", "branch", "ring digit", "syntax", "position"}
"""Groups of concepts that a chemist would not call chemistry."""


def test_every_concept_of_molecules_has_a_kind():
    for concept in MOLECULE.concepts:
        for on_element in (True, False):
            kind = kind_of(
                {"label": concept.name, "concept": concept.name}, on_element=on_element, syntax=MOLECULE.syntax
            )
            assert kind == ("syntax" if concept.group in SYNTAX else "named"), concept


def test_syntax_names_concepts_of_its_domain():
    for name in DOMAINS:
        domain = DOMAINS[name]
        assert domain.syntax <= {concept.name for concept in domain.concepts}, name


def test_a_name_counts_only_where_it_was_given():
    """The best concept of a feature that none fits says nothing; its token does."""
    row = {"label": "unexplained", "concept": "branch closing"}
    asked = {"syntax": MOLECULE.syntax}
    assert kind_of(row, on_element=True, **asked) == "unnamed"
    assert kind_of(row | {"concept": "benzene ring"}, on_element=False, **asked) == "syntax"
    assert kind_of({}, on_element=True, **asked) == "unnamed"
    assert kind_of({"label": "low logP", "concept": "logP"}, on_element=False, **asked) == "named"
    assert kind_of({"label": "mine", "concept": "a concept of my own"}, on_element=False, **asked) == "named"


def test_evenness_is_an_effective_share():
    assert evenness([2.0, -2.0, 2.0, -2.0]) == 1
    assert abs(evenness([1.0, -1.0, 0.0, 0.0]) - 0.5) < 1e-12
    assert math.isnan(evenness([0.0, 0.0]))

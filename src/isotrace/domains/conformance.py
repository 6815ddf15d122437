"""Does a domain keep its word? The checks a new one must pass, on any text and tokenizer."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np

from isotrace.base.errors import InputError
from isotrace.domains.domain import Domain, Look, Reading


def check(domain: Domain, text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]) -> Reading:
    """The reading. Raises InputError, naming the method, for the first that says what does not fit the others."""
    reading = domain.read(text, tokens, offsets)
    n = reading.n_elements
    for method, holds in _promises(domain, reading, n, len(tokens)):
        if not holds:
            raise InputError(f"the domain {domain.name}: {method} does not fit {text!r}.")
    return reading


def _promises(domain: Domain, reading: Reading, n: int, n_tokens: int):
    """(method, whether it holds); one after the other, since later ones stand on earlier ones."""
    yield "read", len(reading.units) == len(reading.elements) == n_tokens
    yield "read", {e for part in reading.elements for e in part} == set(range(n))
    yield "read", all(set(part) <= set(unit.about) for unit, part in zip(reading.units, reading.elements, strict=True))
    yield "begun", domain.begun(reading.text, "it") is None
    names = domain.names(reading)
    yield "names", len(names) == len({row["name"] for row in names}) == n and all(row["symbol"] for row in names)
    parts = domain.parts(reading)
    yield "parts", sorted(e for part in parts for e in part.elements) == list(range(n))
    yield "parts", len({part.name for part in parts}) == len(parts)
    bonds = domain.bonds(reading)
    yield "bonds", bonds.shape[1:] == (2,) and (not bonds.size or (bonds.min() >= 0 and bonds.max() < n))
    for other in domain.spellings(reading, 3, 0):
        yield "spellings", sorted(other.original) == list(range(n)) and other.text != reading.text
        yield "same", domain.same(other.text) == domain.same(reading.text)
    labels, concepts = domain.label(reading), domain.concepts
    yield "concepts", len({concept.name for concept in concepts}) == len(concepts)
    yield "label", labels.numbers.shape == (len(concepts),)
    yield "label", all(concepts[i].kind == "token" and set(at) <= set(range(n_tokens)) for i, at in labels.instances)
    yield "label", all(np.isnan(x) for x, c in zip(labels.numbers, concepts, strict=True) if c.kind == "token")
    named = {concept.name for concept in concepts}
    yield "syntax and substructures", domain.syntax | domain.substructures <= named
    yield "groups", len(domain.groups([reading.text, reading.text])) == 2
    yield "fingerprints", len(domain.fingerprints([reading.text, reading.text])) == 2
    yield "degenerate", domain.degenerate(reading.text, reading.text, domain.complexity(reading.text)) is None
    weights = {e: (-1.0) ** e for e in range(n)}
    for small in (False, True):
        drawn = ElementTree.fromstring(domain.draw_elements(reading, weights, Look(True, 1.0, small)))
        hits = {one.get("data-element") for one in drawn.iter() if one.get("class") == "hit"}
        yield "draw_elements", small or hits == {str(e) for e in range(n)}
    yield "draw", ElementTree.fromstring(domain.draw(reading, [1.0] * n_tokens)) is not None
    yield "picture", domain.picture(reading)["kind"] in ("graph", "track")

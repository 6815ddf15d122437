"""Which tokens carry the concepts that rules speak of: columns of the data, what the domain labels, and what follows.

A name is, in this order, a column of yes and no; a concept of the domain; a number of the domain with a bound
(`logP < 3.5`); or what the rules conclude from the others. A column and a class of whole sequences are carried by every
token of a sequence, a concluded name by the tokens that carry what it was concluded from.
"""

import operator
import re
from collections.abc import Callable

import numpy as np
import torch

from isotrace.base.errors import InputError
from isotrace.datasets.annotated import read
from isotrace.datasets.reading.cells import meant
from isotrace.domains.domain import Domain, Labels, domain_of
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.concepts.rulebase import RuleBase
from isotrace.subjects.subject import Subject

Carried = dict[str, np.ndarray]
"""Of one sequence: name → bool `[tokens]`, all False where it is known not to hold; a name that is not known is left
out. No special token carries any. A name that rules conclude is carried by none where all premises are known and it
does not follow: that makes it no known falsehood, and no rule fires on it, but its features are compared with those."""
Source = Callable[[int, Labels, np.ndarray], np.ndarray | None]
"""(row, labels of the domain, tokens that are not special) → those that carry the name, None = not known."""
BOUNDS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_BOUNDED = re.compile(r"(.+?)\s*(<=|>=|<|>)\s*([+-]?\d+\.?\d*)")


def carried(subject: Subject, contrast: Contrast, base: RuleBase) -> list[Carried]:
    """Of every sequence, the names of `base`. Raises InputError for a premise that is no column and no concept, and for
    a number without a bound."""
    domain, sources = domain_of(str(subject.files.domain)), dict[str, Source]()
    for name in (*base.premises, *base.heads):
        source = _source(domain, contrast.marks, name)
        if source is not None:
            sources[name] = source
        elif name in base.premises:
            known = [*contrast.marks, *(concept.name for concept in domain.concepts)]
            raise InputError(f"no column of yes and no and no concept is called {name!r}: {meant(name, known)}.")
    found = []
    for row, example in enumerate(contrast.examples):
        whole = ~subject.special(torch.from_numpy(example.ids)).cpu().numpy()
        labels = domain.label(read(subject, domain, example.text)[1])
        own = {name: source(row, labels, whole) for name, source in sources.items()}
        known = {name: mask for name, mask in own.items() if mask is not None}
        found.append(known | concluded(base, known, whole))
    return found


def concluded(base: RuleBase, known: Carried, whole: np.ndarray) -> Carried:
    """What follows from what is known of a sequence."""
    closure = base.closure({name: bool(mask.any()) for name, mask in known.items()})
    found = {name: np.zeros_like(whole) for name in base.heads if all(premise in known for premise in base.premises)}
    found = {name: none for name, none in found.items() if name not in (*known, *closure.contradicted)}
    for name in closure.steps:
        grounds = [known[leaf] for leaf, value in closure.leaves(name) if value]
        places = np.logical_or.reduce(grounds) if grounds else whole
        found[name] = places if closure.known[name] else np.zeros_like(whole)
    return found


def _source(domain: Domain, marks: dict[str, np.ndarray], name: str) -> Source | None:
    """None for a name that is neither a column nor a concept."""
    if name in marks:
        return lambda row, labels, whole: _all(marks[name][row], lambda x: x == 1, whole)
    places = {concept.name: i for i, concept in enumerate(domain.concepts)}
    bounded = _BOUNDED.fullmatch(name)
    if name not in places and bounded and bounded[1] in places:
        place, holds, bound = places[bounded[1]], BOUNDS[bounded[2]], float(bounded[3])
        return lambda row, labels, whole: _all(labels.numbers[place], lambda x: holds(x, bound), whole)
    if name not in places:
        return None
    place, kind = places[name], domain.concepts[places[name]].kind
    if kind == "value":
        raise InputError(f"{name} is a number: give it a bound, as in '{name} < 3'.")
    if kind == "class":
        return lambda row, labels, whole: _all(labels.numbers[place], lambda x: x == 1, whole)

    def tokens(row: int, labels: Labels, whole: np.ndarray) -> np.ndarray:
        mask = np.zeros_like(whole)
        for concept, positions in labels.instances:
            if concept == place:
                mask[[*positions]] = True
        return mask & whole

    return tokens


def _all(number: float, holds: Callable[[float], bool], whole: np.ndarray) -> np.ndarray | None:
    return None if np.isnan(number) else whole & bool(holds(number))

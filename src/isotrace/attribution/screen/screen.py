"""One molecule in a fraction of a second: no graph, no circuit, only what moves the target when it is taken away.

1. hide      every atom, every substructure, and as many random atoms, by mask tokens in the running subject
2. features  the fall of the target to first order were a feature at its mean, of the running subject too

A file of molecules is told in one table over all of them, see `substructures.over_molecules`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isotrace.attribution.ablation import Ablation, feature_values, first_order
from isotrace.attribution.screen.substructures import Found, substructures
from isotrace.attribution.units import elements_to_hide, falls, shared
from isotrace.base.errors import SubjectError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.domains.domain import Domain, Reading
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

DRAWS = 2
"""Random sets of atoms for every substructure."""


@dataclass(frozen=True)
class Screened:
    """`atoms`, `substructures`: the fall of the target when each is hidden, beside that of as many random atom tokens,
    the mean over DRAWS. `features`: (layer, position, feature, effect to first order), strongest first."""

    value: float
    atoms: dict[int, float]
    substructures: tuple[Found, ...]
    features: tuple[tuple[int, int, int, float], ...]


def screen(
    subject: Subject, dictionary: Dictionary, domain: Domain, reading: Reading, batch: Batch, target: Target, *,
    n_features: int = 20, ablation: Ablation = "mean", seed: int = 0,
) -> Screened:  # fmt: skip
    """`batch` holds the sequence of `reading` alone, prepared for the target. Raises SubjectError where the subject has
    no mask token, so that nothing can be hidden from it."""
    if subject.mask_id is None:
        raise SubjectError(f"{subject.source} has no mask token, so no atom can be hidden from it: leave out --quick.")
    value, atoms, found = hide(subject, domain, reading, batch, target, seed)
    parts = Features(dictionary), feature_values(dictionary, ablation)
    effects = torch.stack(first_order(subject, *parts, batch, target))
    best = effects.abs().flatten().topk(min(n_features, effects.numel())).indices
    places = torch.stack(torch.unravel_index(best, effects.shape), 1).tolist()
    features = tuple((*map(int, place), float(effects[tuple(place)])) for place in places)
    return Screened(value, atoms, found, features)  # pyright: ignore[reportArgumentType]


def hide(
    subject: Subject, domain: Domain, reading: Reading, batch: Batch, target: Target, seed: int = 0,
    elements: bool = True,
) -> tuple[float, dict[int, float], tuple[Found, ...]]:  # fmt: skip
    """(the target, by how much it falls when each element is hidden, none where `elements` is False, when each
    substructure is). `batch` as in `screen`, of a subject that has a mask token."""
    atoms = elements_to_hide(subject, batch, reading.elements)
    free, rng = sorted(frozenset().union(*atoms.values())), np.random.default_rng(seed)
    shown = batch.ids[0] != subject.mask_id
    named = [(name, frozenset(p for p in at if shown[p])) for name, at in substructures(domain, reading)]
    named = [(name, at) for name, at in named if at]
    draws = [_random(free, at, rng) for _, at in named]
    atoms = atoms if elements else {}
    sets = [*atoms.values(), *(at for _, at in named), *(one for few in draws for one in few)]
    value, fall = falls(subject, batch, target, sets)
    found = tuple(
        Found(name, tuple(sorted(at)), fall[at], float(np.mean([fall[one] for one in few])) if few else np.nan)
        for (name, at), few in zip(named, draws, strict=True)
    )
    return value, shared(atoms, fall), found


def _random(free: Sequence[int], at: frozenset[int], rng: np.random.Generator) -> list[frozenset[int]]:
    """Sets as large as `at` of other atom tokens, as far as there are any."""
    others = [p for p in free if p not in at]
    if len(others) < len(at):
        return []
    return [frozenset(int(p) for p in rng.choice(others, len(at), replace=False)) for _ in range(DRAWS)]

"""Does every method of the registry find the planted direction? What each is held to follows from what it edits:

the stream       |cosine| of what the edit adds to the mean state, as the stream sees it, with what n_A writes: a
                 direction has a length and an angle and nothing else, .95 or more
neurons          rank of n_A by size among all units edited, which must be the first: units are chosen, not mixed
gain             n_A is among the units kept at q < .05: decoys that fire with it have the same momentum, and no
                 observation tells them apart
head input       |cosine| with the direction by which the head reads A, .95 or more
other layers     the layer that is injected most is that of n_A
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import IsotraceError
from isotrace.base.progress import Progress
from isotrace.dictionaries.features import Features
from isotrace.interventions import Hookpoints, MLPs, Residuals
from isotrace.steering import Edit, Edits, FeatureEdit, GainEdit, InputEdit, RemoveEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import DIRECTIONS, Direction, means_of, moved_by
from isotrace.steering.states import weighted
from isotrace.studies.worlds.planted_steering import A, World, contrast_of, sequences, share
from isotrace.studies.worlds.planted_weights import Node, neurons_as_features

BAR = 0.95
TOKENS = ",".join(A)
LACKING: dict[str, Any] = {"tokens": TOKENS, "token": TOKENS}
"""By name, what any method that needs it is given."""
SETTINGS: dict[str, dict[str, Any]] = {
    "regime_delta": {"mode": "pooled"},
    "lineas": {"steps": 200},
    "feature_clamp": {"tokens": TOKENS},
    "circuit_clamp": {"size": 1},
    "snmf": {"layers": (1,), "k": 4, "restarts": 5, "iterations": 100},
    "manifold": {"bins": 8},
    "anchored": {"k": 1, "gap": 0.5},
    "injection": {"components": MLPs()},
    "rules": {"rules": "rich -> wanted", "k": 1},
}
"""Where a method's own defaults are made for other data."""
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "regime_delta": ({"standardise": False},),
    "probe": ({"form": "pattern"},),
    "gradient": ({"form": "pattern"},),
}
"""Other settings that have a row of their own."""
Row = dict[str, Any]


def method_rows(world: World, n: int, seed: int, progress: Progress) -> list[Row]:
    """A row for every method of the registry, on `n` sequences; of one that does not fit, the reason."""
    cases = [(entry, more) for name, entry in DIRECTIONS.items() for more in ({}, *FORMS.get(name, ()))]
    contrasts = {name: make(world, n, seed) for name, make in DATA.items()}
    usual = _usual(world, n, seed)
    return [_row(world, entry, more, contrasts.get(entry.name, usual)) for entry, more in progress(cases, "methods")]


def _row(world: World, entry: Direction, more: dict[str, Any], contrast: Contrast) -> Row:
    row: Row = {"method": entry.name, "settings": ", ".join(f"{k} {getattr(v, 'name', v)}" for k, v in more.items())}
    row |= dict.fromkeys(("confounds", "edit", "held_to", "value", "decoy", "found", "why"))
    given = {name: value for name, value in LACKING.items() if entry.settings.get(name) is ...}
    if entry.components is Residuals:
        given |= {"components": MLPs(), "layers": (world.layer,)}
    if entry.name == "foxp2":
        given["components"] = Features(neurons_as_features(world.subject))
    given |= SETTINGS.get(entry.name, {}) | more
    whys = []
    for confounds in ("residual", "match", "free"):
        try:
            held = contrast if confounds == "free" else getattr(contrast, confounds)()
            edits = entry.fit(world.subject, held, **given)
        except IsotraceError as error:
            whys.append(f"{confounds}: {error}")
            continue
        return row | {"confounds": confounds, "edit": edits.edits[0].kind} | judged(world, edits, held)
    return row | {"found": False, "why": "; ".join(dict.fromkeys(whys))}


def judged(world: World, edits: Edits, contrast: Contrast) -> Row:
    """`held_to`, `value`, that of the decoy where it has one, and whether A is `found`; see the module."""
    units = [edit for edit in edits.edits if edit.components.name in UNITS]
    first = (units or edits.edits)[0]
    if isinstance(first, InputEdit):
        sources = {layer: max(e.sources.get(layer, 0.0) for e in edits.edits if isinstance(e, InputEdit))
                   for layer in range(world.subject.n_layers)}  # fmt: skip
        best = max(sources, key=lambda layer: sources[layer])
        return {"held_to": "layer injected most", "value": float(best), "found": best == world.layer}
    if isinstance(first, RemoveEdit):
        cosine = abs(_cosine(first.direction.view(-1, world.subject.d_model)[0], world.written["A"]))
        return {"held_to": "cosine ≥ 0.95", "value": cosine, "found": cosine >= BAR}
    if units:
        sizes = {(e.layer, unit): size for e in units for unit, size in _sizes(e).items()}
        own, decoy = (_rank(sizes, world.neurons[name]) for name in ("A", "decoy"))
        if isinstance(first, GainEdit):
            return {"held_to": "q < 0.05", "value": own, "decoy": decoy, "found": own == own}
        return {"held_to": "rank 1", "value": own, "decoy": decoy, "found": own == 1}
    moved = _moved(world, [e for e in edits.edits if _block(e) == world.layer], contrast)
    own, decoy = (abs(_cosine(moved, world.written[name])) for name in ("A", "decoy"))
    return {"held_to": "cosine ≥ 0.95", "value": own, "decoy": decoy, "found": own >= BAR}


def _block(edit: Edit) -> int | None:
    """Of an edit of the stream or of what an MLP adds to it."""
    if isinstance(edit.components, Hookpoints):
        _, block, kind = edit.components.names[edit.layer].split(".")
        return int(block) if kind in ("mlp_out", "resid_post") else None
    return edit.layer if isinstance(edit.components, MLPs | Residuals) else None


UNITS = ("neuron", "along_neuron", "feature")


def _sizes(edit: Edit) -> dict[int, float]:
    """Unit → size of what is done to it, of those that are edited."""
    if isinstance(edit, FeatureEdit):
        return dict(zip(edit.units, edit.values.abs().tolist(), strict=True))
    x = edit.beta if isinstance(edit, GainEdit) else getattr(edit, "direction")  # noqa: B009
    return {i: v for i, v in enumerate(x.flatten().abs().tolist()) if v > 0}


def _rank(sizes: Mapping[Node, float], node: Node) -> float:
    """From 1, ties counted against; NaN of one that is not edited."""
    own = sizes.get(node)
    return float(sum(v >= own for v in sizes.values())) if own is not None else float("nan")


def _moved(world: World, edits: Sequence[Edit], contrast: Contrast) -> Tensor:
    """`[d]`: what the first of `edits` adds to the mean state; zeros of none."""
    if not edits:
        return torch.zeros(world.subject.d_model)
    edit = edits[0]
    means, _ = weighted(world.subject, contrast.examples, edit.components, (edit.layer,), means_of(contrast))
    return moved_by(edit, means[edit.layer])


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten().double().cpu(), b.flatten().double().cpu()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-30))


def _usual(world: World, n: int, seed: int) -> Contrast:
    return contrast_of(world.subject, sequences(n, seed))


def _unwanted(world: World, n: int, seed: int) -> Contrast:
    """Few of A are wanted, since this method takes away what is not."""
    texts = sequences(n, seed)
    rich = np.median([share(text) for text in texts])
    return contrast_of(world.subject, texts, ["rich" if share(t) > rich else "poor" for t in texts], positive="poor")


def _spoilt(world: World, n: int, seed: int) -> Contrast:
    """Pairs of one length: a sequence, and the same with all of A replaced."""
    rng, pairs = np.random.default_rng((seed, 22)), []
    for text in sequences(n, seed):
        if share(text) > 0.3:
            pairs.append((text, "".join(rng.choice([*"FGHL"]) if t in A else t for t in text)))
    texts = [text for pair in pairs for text in pair]
    names = [f"p{i // 2}" for i in range(len(texts))]
    return contrast_of(world.subject, texts, ["clean", "corrupt"] * len(pairs), positive="clean", pairs=names)


def _marked(world: World, n: int, seed: int) -> Contrast:
    """With a column of yes and no, of which rules speak."""
    contrast = _usual(world, n, seed)
    return replace(contrast, marks={"rich": np.asarray([float(share(text) > 0.3) for text in sequences(n, seed)])})


DATA: dict[str, Callable[[World, int, int], Contrast]] = {
    "eigenshift": _unwanted, "foxp2": _spoilt, "injection": _spoilt, "rules": _marked,
}  # fmt: skip
"""What a method reads that asks for other data than two sides of the property."""

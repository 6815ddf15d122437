"""Targets that are read from the head of a fine-tuned subject.

class:LABEL[-OTHER]       log-odds of LABEL: its logit minus that of OTHER; without OTHER, minus the mean logit of the
                          other classes. Where several labels may hold at once, the logit of LABEL alone
output:NAME               one output as it is: the number of a regression, or a logit
label:POS:NAME[-OTHER]    as class, by a head of tokens, of the token at POS
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.settings import whole_number
from isotrace.subjects.heads.outputs import HEADS, MANY_LABELS, REGRESSION, Kind, Outputs, headless
from isotrace.subjects.sources.adapter import is_adapter
from isotrace.subjects.targets import TARGETS, Target

if TYPE_CHECKING:
    from isotrace.subjects.subject import Batch, Subject


@TARGETS.named("class")
@TARGETS.named("output")
@TARGETS.named("label")
def task_target(text: str, subject: "Subject", batch: "Batch | None" = None) -> Target:
    """Of the first sequence of `batch`; without one, what fits no sequence is refused all the same. Raises SubjectError
    for a subject without the head that is asked for, InputError for a label or position that is not there."""
    kind, _, rest = text.partition(":")
    task = subject.require_task("token" if kind == "label" else "sequence")
    where, position = "", None
    if kind == "label":
        place, _, rest = rest.partition(":")
        position = _position(place, subject, batch)
        token = "" if batch is None else f" ({subject.tokens(batch.ids[0, position : position + 1])[0]})"
        where = f" at position {position}{token}"
    coefficients, description, unit = _combination(task, kind, rest, text)
    return Target(kind, text, description + where, unit, place=position, outputs=coefficients)


def look_at_head(text: str, folder: Path, source: str) -> None:
    """Raises what the config in `folder` tells of a target of a head, before torch is imported. Of an adapter, which
    may bring a head of its own, nothing."""
    if is_adapter(folder):
        return
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):  # said where it is loaded
        return
    kind, _, rest = text.partition(":")
    architecture = str((config.get("architectures") or [""])[0])
    reads: Kind | None = next((HEADS[end] for end in HEADS if architecture.endswith(end)), None)
    if reads is None:
        raise headless(source, architecture)
    unnamed = {place: f"LABEL_{place}" for place in range(config.get("num_labels", 2))}
    task = Outputs(config.get("id2label") or unnamed, config.get("problem_type"), reads, source)
    task.require("token" if kind == "label" else "sequence")
    _combination(task, kind, rest.partition(":")[2] if kind == "label" else rest, text)


def _combination(task: Outputs, kind: str, rest: str, text: str) -> tuple[tuple[float, ...], str, str]:
    """(how often every output counts, description, unit) of what stands behind the kind and the position."""
    if kind != "output":
        return _contrast(task, rest, text)
    number = task.problem == REGRESSION
    said, unit = ("output", "output") if number else ("logit of output", "logit")
    return _hot(task, _known(task, rest, text)), f"{said} {rest}", unit


def _contrast(task: Outputs, rest: str, text: str) -> tuple[tuple[float, ...], str, str]:
    """(how often every output counts, description, unit) of LABEL or LABEL-OTHER."""
    if task.problem == REGRESSION:
        raise InputError(
            f"{text!r} asks for a class, but {task.source} gives numbers: use output:NAME, {_listed(task)}."
        )
    label, other = _split(task, rest)
    index = _known(task, label, text)
    if other is not None:
        pair = [_known(task, other, text), index]
        coefficients = tuple(float(b - a) for a, b in zip(*(_hot(task, place) for place in pair), strict=True))
        if task.problem == MANY_LABELS:
            return coefficients, f"logit of {label} minus logit of {other}", "logit"
        return coefficients, f"log-odds of {label} against {other}", "log-odds"
    n = len(task.names)
    if n == 1 or task.problem == MANY_LABELS:
        doubt = "" if task.problem else ", if it was trained as a class: problem_type in the config does not say"
        return _hot(task, index), f"log-odds of {label}{doubt}", "log-odds"
    coefficients = tuple(1.0 if place == index else -1 / (n - 1) for place in range(n))
    if n == 2:
        return coefficients, f"log-odds of {label} against {task.names[1 - index]}", "log-odds"
    return coefficients, f"logit of {label} minus the mean logit of the {n - 1} other classes", "logit"


def _split(task: Outputs, rest: str) -> tuple[str, str | None]:
    """LABEL and OTHER; a label may hold "-" itself."""
    cuts = [place for place, character in enumerate(rest) if character == "-"]
    both = [(rest[:at], rest[at + 1 :]) for at in cuts if rest[:at] in task.names]
    both = [(a, b) for a, b in both if b in task.names and a != b] or both
    return (rest, None) if rest in task.names or not both else both[0]


def _known(task: Outputs, name: str, text: str) -> int:
    if name not in task.names:
        raise InputError(f"{text!r} asks for {name!r}, which is no output of {task.source}: {_listed(task)}.")
    return task.names.index(name)


def _listed(task: Outputs) -> str:
    own = " (transformers' own names: id2label in its config gives no others)" if task.unnamed else ""
    return f"it has {', '.join(task.names)}{own}"


def _hot(task: Outputs, index: int) -> tuple[float, ...]:
    return tuple(float(place == index) for place in range(len(task.names)))


def _position(text: str, subject: "Subject", batch: "Batch | None") -> int:
    position = whole_number(text)
    if batch is None:
        top = subject.max_tokens - 1
        if position is None or not 0 <= position <= top:
            raise InputError(f"position {text!r} is out of range: positions are whole numbers from 0 to at most {top}.")
        return position
    real = (~subject.special(batch.ids[0]) & batch.mask[0]).nonzero()[:, 0].tolist()
    if not real:
        raise SubjectError(f"this input holds special tokens only: {subject.source} labels none of them.")
    if position is None or position not in real:
        raise InputError(f"position {text!r} is none that can be labelled: this input has {real[0]} to {real[-1]}.")
    return position

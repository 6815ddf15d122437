"""Targets that are read from the head of a fine-tuned subject.

class:LABEL[-OTHER]       log-odds of LABEL: its logit minus that of OTHER; without OTHER, minus the mean logit of the
                          other classes. Where several labels may hold at once, the logit of LABEL alone
output:NAME               one output as it is: the number of a regression, or a logit
label:POS:NAME[-OTHER]    as class, by a head of tokens, of the token at POS
"""

from typing import TYPE_CHECKING

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.settings import whole_number
from isotrace.subjects.heads.task_head import MANY_LABELS, REGRESSION, TaskHead
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
    if kind == "output":
        number = task.problem == REGRESSION
        coefficients, unit = _hot(task, _known(task, rest, text)), "output" if number else "logit"
        description = f"{'output' if number else 'logit of output'} {rest}"
    else:
        coefficients, description, unit = _contrast(task, rest, text)
    return Target(kind, text, description + where, unit, place=position, outputs=coefficients)


def _contrast(task: TaskHead, rest: str, text: str) -> tuple[tuple[float, ...], str, str]:
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


def _split(task: TaskHead, rest: str) -> tuple[str, str | None]:
    """LABEL and OTHER; a label may hold "-" itself."""
    cuts = [place for place, character in enumerate(rest) if character == "-"]
    both = [(rest[:at], rest[at + 1 :]) for at in cuts if rest[:at] in task.names]
    both = [(a, b) for a, b in both if b in task.names and a != b] or both
    return (rest, None) if rest in task.names or not both else both[0]


def _known(task: TaskHead, name: str, text: str) -> int:
    if name not in task.names:
        raise InputError(f"{text!r} asks for {name!r}, which is no output of {task.source}: {_listed(task)}.")
    return task.names.index(name)


def _listed(task: TaskHead) -> str:
    own = " (transformers' own names: id2label in its config gives no others)" if task.unnamed else ""
    return f"it has {', '.join(task.names)}{own}"


def _hot(task: TaskHead, index: int) -> tuple[float, ...]:
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

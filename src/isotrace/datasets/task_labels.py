"""What the labels of a task say: which rows have one, and which kind of task they stand for."""

import re
from collections.abc import Sequence
from typing import Literal

from isotrace.base.errors import InputError
from isotrace.datasets.reading.cells import is_almost_number, why_no_number

Kind = Literal["class", "regression", "residue", "masked", "mutation"]
MAX_CLASSES = 20


def kind_of(
    values: Sequence[str], lengths: Sequence[int], rows: Sequence[int] = (), label: str = "", *, mixed: bool = False
) -> Kind:
    """The kind of task that labels stand for, where none was given: residue if most are made of 0 and 1 and as long as
    their sequence (the others are damaged), regression if all are numbers and more than MAX_CLASSES differ or one is no
    whole number, else class.

    Raises InputError for a column of numbers with others among them (words, decimal commas, bounds), naming the first
    and its row, unless `mixed`: then a column most of which are numbers is regression. Raises it also for texts most
    of which differ; `rows` are their numbers, `label` the column.
    """
    if 2 * sum(len(v) == n and not set(v) - {"0", "1"} for v, n in zip(values, lengths, strict=True)) > len(values):
        return "residue"
    wrong = [(i, v, why) for i, v in enumerate(values) if (why := why_no_number(v))]
    if not wrong:
        numbers = {float(v) for v in values}
        return "regression" if len(numbers) > MAX_CLASSES or any(v % 1 for v in numbers) else "class"
    if 2 * sum(map(is_almost_number, values)) < len(values):
        if len({*values}) > max(MAX_CLASSES, len(values) / 2):
            raise InputError(
                f"column {label!r} holds {len({*values})} different texts in {len(values)} rows, such as "
                f"{values[0][:40]!r}: these are no classes; give --label the column of a property."
            )
        return "class"
    if mixed and 2 * len(wrong) <= len(values):
        return "regression"
    i, text, why = wrong[0]
    where = f" in row {rows[i]}" if rows else ""
    more = f" ({len(wrong) - 1} more rows have such labels)" if len(wrong) > 1 else ""
    advice = ": correct it or empty the cell" if ":" not in why else ""
    raise InputError(
        f"column {label!r} holds numbers, but {text!r}{where} {why}{advice}{more}. If the labels are classes, "
        "give --task class."
    )


def natural(text: str) -> tuple[int, float, str]:
    """Sorts classes: numbers by size, then words."""
    return (0, float(text), text) if re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII) else (1, 0.0, text)

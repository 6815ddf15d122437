"""The safe window of a trial: up to which dose designs from development starts, which nobody is told, stay sound.

Degenerate designs are counted at every dose, and a second subject, the reader, says how perplexed it is by what the
writer wrote; see `dose.safe_window` for the bounds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isotrace.base.errors import InputError, SubjectError
from isotrace.domains.domain import Domain
from isotrace.steering.contrast import Contrast
from isotrace.steering.dose import Window, perplexities, safe_window
from isotrace.steering.edits import Edits
from isotrace.steering.trials.arm import Workshop
from isotrace.subjects.subject import Subject


@dataclass(frozen=True)
class Checked:
    """A dose on the development starts, 0 unsteered: how many designs were `written`, and how many are `valid`.
    `degenerate`: share of these. `perplexity`: geometric mean under the reader over those that it can read, NaN without
    one; `unread`: those that it cannot, of `valid`."""

    dose: float
    degenerate: float
    perplexity: float
    written: int
    valid: int
    unread: int


@dataclass(frozen=True)
class Safety:
    """`rows`: unsteered, then the doses that were reached. `reader`: the source of the second subject, None where
    there was none and perplexities are not known. `starts`: number of development starts."""

    window: Window
    rows: tuple[Checked, ...]
    reader: str | None
    starts: int

    def holds(self, dose: float) -> bool:
        return dose <= self.window.largest


def check_reader(reader: Subject, writer: Subject) -> None:
    """Raises InputError for the writer itself and for another domain, SubjectError for one without a head."""
    if reader.files.weights_sha256 == writer.files.weights_sha256:
        raise InputError(f"{reader.source} writes the designs and finds its own likely: give another --reader.")
    if reader.files.domain != writer.files.domain:
        raise InputError(
            f"{reader.source} reads {reader.files.domain or 'no domain that it names'} and {writer.source} writes "
            f"{writer.files.domain}: give a --reader of the same domain."
        )
    if not reader.has_head:
        raise SubjectError(f"{reader.source} has no language-model head, so nothing is likely: give another --reader.")


def development_starts(
    subject: Subject, domain: Domain, judging: Contrast, told: Sequence[str], n: int
) -> tuple[str, ...]:
    """At most `n` negative sequences of `judging` that are none of those `told`; for a causal subject, which goes on
    with what it is given, the beginnings of them, as long as the told ones are in turn. Raises InputError where none is
    left."""
    names = {_name(domain, text) for text in told}
    texts = [judging.examples[row].text for row in judging.negative]
    texts = [text for text in texts if _name(domain, text) not in names][:n]
    if not texts:
        raise InputError("no negative sequence is left for development, where the safe window is found: give more.")
    return tuple(texts) if subject.objective != "causal" else _beginnings(subject, texts, told)


def checked(workshop: Workshop, dose: float, edits: Edits | None, reader: Subject | None) -> Checked:
    """`workshop`: of the development starts. Raises InputError for a reader that can read no unsteered design."""
    arm = workshop.arm(f"development {dose}", dose, edits)
    valid, value, unread = [row for row in arm.rows if row.valid], float("nan"), 0
    if reader is not None:
        written = [(row.sequence, workshop.starts[row.start]) for row in valid]
        value, unread = workshop.memo.plain(f"perplexity {dose}", lambda: perplexity(reader, workshop.subject, written))
        if dose == 0 and valid and unread == len(valid):
            raise InputError(f"{reader.source} can read none of the unsteered designs: give another --reader.")
    return Checked(dose, arm.degenerate, value, len(arm.rows), len(valid), unread)


def perplexity(reader: Subject, writer: Subject, written: Sequence[tuple[str, str]]) -> tuple[float, int]:
    """(geometric mean over what the reader can read of `written`, pairs of a sequence and its start, NaN of none; how
    many it cannot)."""
    batches, times, unread = [], [], 0
    for (text, start), n in Counter(written).items():
        try:
            batches.append(reader.tokenize([text], [start] if reader.objective == "translating" else None))
            times.append(n)
        except InputError:
            unread += n
    if not batches:
        return float("nan"), unread
    logs, weights = np.log(perplexities(reader, batches, writer)), np.asarray(times)
    known = np.isfinite(logs)  # of a single token that nothing stands before nothing is predicted
    value = float(np.average(logs[known], weights=weights[known])) if known.any() else float("nan")
    return float(np.exp(value)), unread + int(weights[~known].sum())


def safety(rows: Sequence[Checked], reader: Subject | None, starts: int) -> Safety:
    """`rows`: unsteered first; without a valid unsteered design no dose is safe."""
    plain, doses, source = rows[0], rows[1:], None if reader is None else reader.source
    if not plain.valid:
        return Safety(Window(0.0, "no unsteered design is valid"), tuple(rows), source, starts)
    values = [1.0 if reader is None else row.perplexity for row in rows]  # without a reader the page says so
    shares = [row.valid / row.written for row in rows]
    window = safe_window(
        [row.dose for row in doses], [row.degenerate for row in doses], values[1:], shares[1:],
        (plain.degenerate, values[0], shares[0]),
    )  # fmt: skip
    return Safety(window, tuple(rows), source, starts)


def _name(domain: Domain, text: str) -> str:
    try:
        return domain.same(text)
    except InputError:  # a beginning need not be a sequence
        return text


def _beginnings(subject: Subject, texts: Sequence[str], told: Sequence[str]) -> tuple[str, ...]:
    lengths = [max(1, int((~subject.special(ids)).sum())) for text in told for ids in subject.tokenize([text]).ids]
    found = []
    for row, text in enumerate(texts):
        batch = subject.tokenize([text])
        places = (~subject.special(batch.ids[0])).nonzero()[:, 0].tolist()
        last = places[: lengths[row % len(lengths)]][-1]
        found.append(text[: batch.offsets[0][last][1]])
    return tuple(found)

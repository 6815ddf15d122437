"""Labels in words, from a language model behind any OpenAI-compatible endpoint: optional, and tested before use.

1. explain   the model sees sequences on which a feature fires, activations marked, some on which it does not, and the
             feature's best concepts, and answers with one sentence
2. detect    it sees that sentence and held-out sequences, half of which fire, and says which; order and number of the
             firing ones are not told
3. score     balanced accuracy with a 95 % interval, p by Fisher's exact test, q over the features asked about
             (Benjamini-Hochberg)

A sentence is shown only if the interval lies above 0.5 and q < 0.05. Nothing is sent unless an endpoint is given. Every
answer is kept in a JSONL file under the hash of its request, so that an interrupted run asks nothing twice.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse, stats

from isotrace.annotation.explain.chat import Chat
from isotrace.base.errors import InputError
from isotrace.domains.domain import Reading

ALPHA = 0.05
MAX_CHARACTERS = 400
ASKED_AT_ONCE = 10
SYSTEM = "You study which property of {things} makes one unit of a neural network fire. You answer with JSON only."


@dataclass(frozen=True)
class Task:
    """A feature to explain.

    key: (layer, feature). examples: sequences of the selection side with the activated tokens marked, and silent ones
    without a mark. concepts: lines on what is known of it. items: held-out (text, whether it fires), as asked.
    """

    key: tuple[int, int]
    examples: tuple[str, ...]
    silent: tuple[str, ...]
    concepts: tuple[str, ...]
    items: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Explanation:
    """What became of a task: the sentence (None if there is none), its balanced accuracy on `n_items` held-out
    sequences with 95 % interval, p and q (NaN if it was not scored), and why it is not shown (`reason`, None if it is).
    """

    key: tuple[int, int]
    text: str | None
    balanced_accuracy: float
    low: float
    high: float
    p: float
    q: float
    n_items: int
    reason: str | None


def make_task(
    key: tuple[int, int],
    activations: sparse.csc_matrix,
    readings: Sequence[Reading],
    sequence_ptr: np.ndarray,
    held: np.ndarray,
    *,
    concepts: Sequence[str],
    seed: int,
    threshold: float = 0.0,
    n_examples: int = 8,
    n_items: int = 20,
) -> Task:
    """From one feature's activations, CSC `[tokens, 1]`, never negative.

    A sequence fires if its largest activation is positive and at least `threshold`, and is silent if that is 0. Silent
    ones are matched: for each firing one, the silent one nearest in length that is not yet taken. `held` bool
    `[sequences]`: the side the items come from. Raises InputError if a side has fewer than 5 of either.
    """
    rng = np.random.default_rng([seed, *key])
    values = np.zeros(int(sequence_ptr[-1]), dtype=np.float32)
    values[activations.indices] = activations.data
    peak = np.maximum.reduceat(values, sequence_ptr[:-1])
    fires, lengths = (peak > 0) & (peak >= threshold), np.diff(sequence_ptr)
    sides = []
    for side, wanted, name in ((~held, n_examples, "selection"), (held, n_items // 2, "held-out")):
        on, off = np.flatnonzero(side & fires), np.flatnonzero(side & (peak == 0))
        count = min(wanted, len(on), len(off))
        if count < 5:
            raise InputError(f"fires on {len(on)} and is silent on {len(off)} {name} sequences, 5 of each are needed")
        # Evenly over the whole range of activations: the strongest alone often share more than what the feature needs.
        ranked = on[np.argsort(-peak[on], kind="stable")]
        chosen = ranked[np.linspace(0, len(ranked) - 1, count).round().astype(int)]
        sides.append((chosen, _matched(lengths, chosen, rng.permutation(off))))
    (shown, quiet), (firing, silent) = sides
    largest = float(peak.max())
    examples = [mark(readings[s], values[sequence_ptr[s] : sequence_ptr[s + 1]] / largest) for s in shown.tolist()]
    items = [(readings[s].text, True) for s in firing] + [(readings[s].text, False) for s in silent]
    order = rng.permutation(len(items)).tolist()
    return Task(
        key,
        tuple(examples),
        tuple(readings[s].text for s in quiet[: len(quiet) // 2]),
        tuple(concepts),
        tuple(items[i] for i in order),
    )


def mark(reading: Reading, values: Sequence[float] | np.ndarray) -> str:
    """The text with each activated token as «token:n», n from 1 to 10 of `values [tokens]` between 0 and 1."""
    text, end = [], 0
    for unit, value in zip(reading.units, values, strict=True):
        if unit.kind != "special":
            piece = reading.text[unit.start : unit.end]
            text.append(reading.text[end : unit.start])
            text.append(f"«{piece}:{max(1, round(10 * float(value)))}»" if value > 0 else piece)
            end = unit.end
    return "".join(text) + reading.text[end:]


def explain(
    tasks: Sequence[Task],
    chat: Chat,
    *,
    things: str,
    workers: int = 4,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Explanation]:
    """One result per task, in order. `things` names the sequences (`molecules, written as SMILES`).

    An answer that cannot be used becomes the task's `reason`. Raises RunError as `Chat.ask`, after which the same call
    goes on where it stopped.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = [pool.submit(_explain_one, task, chat, things) for task in tasks]
        found = [future.result() for future in progress(waiting)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    scored = [i for i, one in enumerate(found) if not np.isnan(one.p)]
    for i, q in zip(scored, stats.false_discovery_control([found[i].p for i in scored]) if scored else (), strict=True):
        reason = None
        if found[i].low <= 0.5:
            reason = "the explanation does not tell firing from silent sequences"
        elif q >= ALPHA:
            reason = f"q of detection is not below {ALPHA}"
        found[i] = replace(found[i], q=float(q), reason=reason)
    return found


def score_detection(fires: np.ndarray, said: np.ndarray) -> tuple[float, float, float, float]:
    """(balanced accuracy, 95 % low, high, one-sided p) of two bool arrays, both values being in `fires`.

    The interval adds the Wilson intervals of sensitivity and specificity in squares (Newcombe 1998): it has width even
    where every answer is right. p: Fisher's exact test, said to fire more often where it fires.
    """
    means, below, above = [], [], []
    for right in (said[fires], ~said[~fires]):
        interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        means.append(right.mean())
        below.append(means[-1] - interval.low)
        above.append(interval.high - means[-1])
    accuracy = float(np.mean(means))
    p = float(stats.hypergeom.sf(np.sum(fires & said) - 1, len(fires), fires.sum(), said.sum()))
    return accuracy, accuracy - float(np.hypot(*below)) / 2, accuracy + float(np.hypot(*above)) / 2, p


def _explain_one(task: Task, chat: Chat, things: str) -> Explanation:
    text, accuracy, low, high, p = None, np.nan, np.nan, np.nan, np.nan
    try:
        text = _sentence(chat.ask(_explain_messages(task, things)))
        said = detected(text, [item for item, _ in task.items], chat, things)
        accuracy, low, high, p = score_detection(np.asarray([fires for _, fires in task.items]), said)
        reason = None
    except MalformedError as error:
        reason = str(error)
    return Explanation(task.key, text, accuracy, low, high, p, np.nan, len(task.items), reason)


def detected(text: str, items: Sequence[str], chat: Chat, things: str) -> np.ndarray:
    """bool `[items]`: on which the model believes a unit to fire that is said to fire on `text`. Raises MalformedError
    for an answer that does not say, and as `Chat.ask`."""
    said = np.zeros(len(items), dtype=bool)
    for start in range(0, len(items), ASKED_AT_ONCE):
        asked = items[start : start + ASKED_AT_ONCE]
        said[start + _numbers(chat.ask(_detect_messages(text, asked, things)), len(asked))] = True
    return said


def _explain_messages(task: Task, things: str) -> list[dict[str, str]]:
    parts = [
        "Activated tokens are marked «token:strength», strength from 1 to 10. The unit fires on these:",
        *task.examples,
        "It is silent on these:",
        *task.silent,
        *(["Properties it was found to go with:", *task.concepts] if task.concepts else []),
        "Say in one short sentence what the unit fires on, so that somebody who knows only this sentence can tell "
        'which others it fires on. Answer with {"explanation": "…"}',
    ]
    return _messages(things, parts)


def _detect_messages(text: str, items: Sequence[str], things: str) -> list[dict[str, str]]:
    parts = [
        f"The unit is said to fire on this: {text}",
        "Going by this alone, on which of these does it fire? It may be any number of them.",
        *(f"{i}. {item}" for i, item in enumerate(items, start=1)),
        'Answer with the numbers of those on which it fires: {"fires": [1, …]}',
    ]
    return _messages(things, parts)


def _messages(things: str, parts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM.format(things=things)}, {"role": "user", "content": "\n".join(parts)}]


class MalformedError(Exception):
    """An answer that does not say what it was asked."""


def _last_object(answer: str, key: str) -> Any:
    """The value of `key` in the last JSON object of the answer that has it: models think, quote and fence around it."""
    found, at = None, answer.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(answer, at)
        except ValueError:
            end = at + 1
        else:
            found = value if isinstance(value, dict) and key in value else found
        at = answer.find("{", end)
    if found is None:
        raise MalformedError(f"the answer holds no {key!r}: {answer.strip()[:80]!r}")
    return found[key]


def _sentence(answer: str) -> str:
    text = _last_object(answer, "explanation")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
        raise MalformedError(f"the explanation is no sentence of at most {MAX_CHARACTERS} characters")
    return " ".join(text.split())


def _numbers(answer: str, n: int) -> np.ndarray:
    """Positions from 0 of the numbers answered."""
    fires = _last_object(answer, "fires")
    if not isinstance(fires, list) or not all(type(i) is int and 1 <= i <= n for i in fires):
        raise MalformedError(f"the answer names no list of numbers from 1 to {n}: {str(fires)[:80]!r}")
    return np.asarray(fires, dtype=np.int64) - 1


def _matched(lengths: np.ndarray, firing: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """For each of `firing` the one of `silent` nearest in length that is not yet taken; ties go by the order given."""
    left, taken = silent.tolist(), []
    for sequence in firing:
        best = int(np.argmin(np.abs(lengths[left] - lengths[sequence])))
        taken.append(left.pop(best))
    return np.asarray(taken, dtype=np.int64)

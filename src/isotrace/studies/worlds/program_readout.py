"""From the edges of a circuit to a program over tokens, which is run to see whether it is the subject's.

1. states   what a component says at a token, as one word. The embedding: the token. A head: what it moves of the
            tokens it attends to. An MLP: a class of its outputs, looked up from the states that it reads
2. heads    the simplest rule "attend to k where …" over order and states that gives the tokens attended to, and the
            words moved: those whose weights in a least-squares fit of the output differ
3. text     Python with an `if` for every class, fitted on some inputs and run on others. What was never seen is "?"

A head's tokens are those that get more than half of the largest weight; where its rule fits none, it says nothing. Its
states are the words moved, or, of several tokens, how often each word stands among them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from isotrace.interventions.edges import Component, Edges, component_graph
from isotrace.studies.worlds.planted_subjects import EMBEDDING, Edge
from isotrace.studies.worlds.programs import Program, words
from isotrace.subjects.dispatch import patterns_recorded
from isotrace.subjects.subject import Batch, Subject

State = tuple[str, ...]
States = list[list[str]]
"""Per sequence, per token."""
SAME, RARE = 0.05, 0.01
"""Of the largest output: how far two may lie apart and count as one; which states of a head are not worth a fit."""
ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "True": lambda q, k: np.ones(np.broadcast(q, k).shape, bool), "k == q - 1": lambda q, k: k == q - 1,
    "k == q + 1": lambda q, k: k == q + 1, "k != q": lambda q, k: k != q, "k <= q": lambda q, k: k <= q,
    "k < q": lambda q, k: k < q, "k >= q": lambda q, k: k >= q, "k > q": lambda q, k: k > q,
}  # fmt: skip
HEAD = """
def moved(words):
    found = [word for word in words if word]
    if len(words) < 2:
        return "".join(found)
    return " ".join(f"{word}:{found.count(word)}" for word in sorted(set(found))) + f" of {len(words)}"


def attended(ks):
    return ks or range(n)

"""


@dataclass(frozen=True)
class Seen:
    """Of one batch, all of one length: values of the senders, patterns `[batch, heads, q, k]` per layer, tokens with
    `<cls>` and `<eos>`, and what the subject answers."""

    values: dict[Component, np.ndarray]
    patterns: list[np.ndarray]
    tokens: States
    answers: list[str]


@torch.no_grad()
def seen(program: Program, texts: Sequence[str]) -> Seen:
    subject = program.planted.subject
    batch = subject.tokenize(texts)
    with patterns_recorded(subject) as found:
        values = Edges().record(subject, batch)[0]
        patterns = [found[module].numpy() for module in subject.attentions]
    senders = component_graph(subject).components[:-1]
    flat = [layer[:, :, c].numpy() for layer in values for c in range(layer.shape[2])]
    return Seen(dict(zip(senders, flat, strict=True)), patterns, words_of(subject, batch), program.predicted(batch))


def words_of(subject: Subject, batch: Batch) -> States:
    return [["<cls>", *tokens, "<eos>"] for tokens in words(subject, batch)]


def read_out(program: Program, edges: Iterable[Edge], texts: Sequence[str]) -> str:
    """Python text of `program(tokens)`, see the module, fitted on `texts`."""
    run, reads = seen(program, texts), defaultdict(list)
    graph = component_graph(program.planted.subject)
    order = {component: at for at, component in enumerate(graph.components)}
    for sender, reader in sorted(set(edges), key=lambda edge: order[edge[0]]):
        reads[reader].append(sender)
    states: dict[Component, States] = {EMBEDDING: run.tokens}
    lines = ["def program(tokens):", '    tokens = ["<cls>", *tokens, "<eos>"]; n = len(tokens)']
    needed = _needed(reads, graph.components[-1])
    for component in graph.components[1:-1]:
        if component in needed:
            given = {_name(c): states[c] for c in reads[component] if c in states}
            if given:
                read = _head if component.kind == "head" else _mlp
                states[component], text = read(run, component, given)
                lines += text
    given = {_name(c): states[c] for c in reads[graph.components[-1]] if c in states}
    lines += _answer(run, given)
    return HEAD.lstrip() + "\n".join(lines) + "\n"


def _needed(reads: dict[Component, list[Component]], output: Component) -> set[Component]:
    found, waiting = set(), [output]
    while waiting:
        component = waiting.pop()
        if component not in found:
            found.add(component)
            waiting += reads.get(component, [])
    return found


def _name(component: Component) -> str:
    at = {"embedding": "tokens", "head": f"head_{component.layer}_{component.index}", "mlp": f"mlp_{component.layer}"}
    return at[component.kind]


def _joint(given: dict[str, States]) -> list[list[State]]:
    """All states at each token, together."""
    return [[*zip(*each, strict=True)] for each in zip(*given.values(), strict=True)]


def _cases(classes: dict[State, str], state: str, say: Callable[[str], str], otherwise: str) -> list[str]:
    """`if state in …` for every class."""
    of: dict[str, list[State]] = defaultdict(list)
    for entry, name in classes.items():
        of[name].append(entry)
    lines = [f"        state = {state}"]
    for at, (name, entries) in enumerate(sorted(of.items())):
        test = f"== {entries[0]!r}" if len(entries) == 1 else f"in {sorted(entries)!r}"
        lines += [f"        {'el' if at else ''}if state {test}:", f"            {say(name)}"]
    return [*lines, "        else:", f"            {say(otherwise)}"]


def _tuple(names: Iterable[str], at: str) -> str:
    return "(" + "".join(f"{name}[{at}], " for name in names).rstrip() + ")"


def _mlp(run: Seen, component: Component, given: dict[str, States]) -> tuple[States, list[str]]:
    """Classes of the mean output of each state."""
    joint, out = _joint(given), run.values[component]
    found: dict[State, list[np.ndarray]] = defaultdict(list)
    for row, vectors in zip(joint, out, strict=True):
        for state, vector in zip(row, vectors, strict=True):
            found[state].append(vector)
    means = {state: np.mean(vectors, 0) for state, vectors in found.items()}
    classes = dict(zip(means, _classes(np.stack([*means.values()])), strict=True))
    name = _name(component)
    text = [f"    {name} = []", "    for q in range(n):",
            *_cases(classes, _tuple(given, "q"), lambda c: f"{name}.append({c!r})", "?")]  # fmt: skip
    return [[classes[state] for state in row] for row in joint], text


def _classes(vectors: np.ndarray) -> list[str]:
    """Names "", "1", "2", …, the same for vectors that are next to equal; "" for next to nothing."""
    near = SAME * np.linalg.norm(vectors, axis=1).max(initial=0) + 1e-12
    leaders, names = [np.zeros(vectors.shape[1])], []
    for vector in vectors:
        apart = [float(np.linalg.norm(vector - leader)) for leader in leaders]
        at = int(np.argmin(apart))
        if apart[at] > near:
            at = len(leaders)
            leaders.append(vector)
        names.append(str(at) if at else "")
    return names


def _head(run: Seen, component: Component, given: dict[str, States]) -> tuple[States, list[str]]:
    pattern = run.patterns[component.layer][:, component.index]
    test, chosen = _rule(pattern > pattern.max(-1, keepdims=True) / 2, given)
    source, names = _moved(pattern, run.values[component], given)
    states = []
    scope: dict[str, Any] = {}
    exec(HEAD, scope)  # the text is ours
    for row, picks in zip(given[source], chosen, strict=True):
        states.append([scope["moved"]([names[row[k]] for k in np.flatnonzero(ks)]) for ks in picks])
    name = _name(component)
    return states, [
        f"    {name} = []", "    for q in range(n):", f"        ks = {test}",
        f"        {name}.append(moved([{names!r}.get({source}[k], '?') for k in ks]))",
    ]  # fmt: skip


def _moved(pattern: np.ndarray, out: np.ndarray, given: dict[str, States]) -> tuple[str, dict[str, str]]:
    """(whose states the head moves, state → class), by least squares of its output on the weight of each state."""
    best: tuple[float, str, dict[str, str]] = (np.inf, "", {})
    target = out.reshape(-1, out.shape[-1]).astype(float)
    for name, states in given.items():
        known = sorted({state for row in states for state in row})
        index = {state: at for at, state in enumerate(known)}
        at = np.eye(len(known))[[[index[state] for state in row] for row in states]]  # [b, k, states]
        weight = (pattern.astype(float) @ at).reshape(len(target), -1)
        fit = np.linalg.lstsq(weight, target, rcond=1e-6)[0]
        error = float(((weight @ fit - target) ** 2).sum())
        if error < 0.9 * best[0]:
            best = error, name, dict(zip(known, _classes(fit), strict=True))
    return best[1:]


def _rule(attended: np.ndarray, given: dict[str, States]) -> tuple[str, np.ndarray]:
    """(text, tokens that it chooses `[b, q, k]` bool): the first of the simplest rules that is right at most tokens.

    Where nothing fits, a head attends everywhere: such tokens teach nothing."""
    n = attended.shape[-1]
    q, k = np.arange(n)[:, None], np.arange(n)
    taught = np.logical_not(attended.all(-1, keepdims=True))
    codes = {}
    sides = [(), *((name,) for name in given), *((tuple(given),) if len(given) > 1 else ())]
    for side in sides:
        joint = _joint({name: given[name] for name in side}) if side else [[()] * n for _ in attended]
        known = sorted({state for row in joint for state in row})
        index = {state: at for at, state in enumerate(known)}
        codes[side] = known, np.array([[index[state] for state in row] for row in joint])
    best: tuple[float, str, np.ndarray] = (-1.0, "", attended)
    for near, (order, allowed), reader, key in product(("", "[-1:]", "[:1]"), ORDERS.items(), sides, sides):
        if (reader and not key) or (near and not key):
            continue
        if best[0] >= 1 - RARE:
            break  # nothing later is better by as much
        (of_q, at_q), (of_k, at_k) = codes[reader], codes[key]
        pair = at_q[:, :, None] * len(of_k) + at_k[:, None, :]
        may = np.broadcast_to(allowed(q, k), attended.shape)
        taken = may & taught
        total = np.bincount(pair[taken], minlength=len(of_q) * len(of_k))
        hits = np.bincount(pair[taken], attended[taken], minlength=len(total))
        choose = np.greater(hits, (0 if near else 0.5) * total)
        picks = may & choose[pair] if key else may
        if near:
            place = np.where(picks, k, -1).max(-1) if near == "[-1:]" else np.where(picks, k, n).min(-1)
            picks = picks & (k == place[..., None])
        right = float((np.where(picks.any(-1, keepdims=True), picks, True) == attended).all(-1).mean())
        if right > best[0] + RARE:
            pairs = [(of_q[a], of_k[c]) for a, c in zip(*np.divmod(np.flatnonzero(choose), len(of_k)), strict=True)]
            best = right, _test(order, reader, key, pairs, near), picks
    return best[1:]


def _test(order: str, reader: State, key: State, pairs: list[tuple[State, State]], near: str) -> str:
    tests = [] if order == "True" else [order]
    if key and not reader:
        tests.append(f"{_tuple(key, 'k')} in {[k for _, k in pairs]!r}")
    elif key:
        tests.append(f"({_tuple(reader, 'q')}, {_tuple(key, 'k')}) in {pairs!r}")
    return f"[k for k in range(n){' if ' + ' and '.join(tests) if tests else ''}]{near}"


def _answer(run: Seen, given: dict[str, States]) -> list[str]:
    """The commonest answer of the subject for each state at the last token."""
    if not given:
        return [f"    return {Counter(run.answers).most_common(1)[0][0]!r}"]
    found: dict[State, Counter[str]] = defaultdict(Counter)
    for row, answer in zip(_joint(given), run.answers, strict=True):
        found[row[-2]][answer] += 1
    classes = {state: counts.most_common(1)[0][0] for state, counts in found.items()}
    lines = _cases(classes, _tuple(given, "-2"), lambda a: f"return {a!r}", "?")
    return [line[4:] for line in lines]

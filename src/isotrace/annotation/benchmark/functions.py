"""Functions of tokens whose definition is known, drawn at random, to grade whoever names features.

After FIND (Schwettmann et al. 2023, arXiv:2309.03886), whose functions are of numbers and strings; these are of tokens
of molecules or proteins. A cell is a kind of definition:

    atomic        a concept                       bias, silent, noise,    a concept, corrupted: absent from sequences
    relational    a neighbour with a concept        two_concepts          with another, at random, fired without it, two
    composed      and, or, xor, not, half         learned                 a small net fitted to one of the above
    graded        a number                        none                    at random, or by a set of tokens: no concept
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isotrace.annotation.benchmark.ground import Ground
from isotrace.annotation.benchmark.learned import fitted
from isotrace.annotation.benchmark.rules import Net, evaluate, quoted
from isotrace.annotation.benchmark.rules import carries as has
from isotrace.base.errors import InputError

CELLS = (
    "atomic", "relational", "composed", "graded", "bias", "silent", "noise", "two_concepts", "learned", "none",
)  # fmt: skip
CORRUPTED = ("bias", "silent", "noise", "two_concepts")
PATTERNS = ("functional group", "structural alert")
"""Groups of concepts that are matched by SMARTS."""
LEAST, MOST = 20, 0.4
"""Tokens of each part on which a function fires, and the largest share of them."""
RARE, COMMON = 0.003, 0.2
"""Share of the tokens that carry a concept of which functions are made."""
APART = 0.05
"""1 − Jaccard of a near miss and the truth, at least."""
TRIES = 4_000


@dataclass(frozen=True, eq=False)
class Function:
    cell: str
    draft: "Draft"
    candidates: np.ndarray
    """float32 `[1 + misses, tokens]` ≥ 0: its activations, then those of its near misses."""
    without: np.ndarray | None
    """bool `[tokens]`: where it would fire without its corruption."""

    @property
    def values(self) -> np.ndarray:
        """float32 `[tokens]` ≥ 0."""
        return self.candidates[0]


@dataclass(frozen=True)
class Draft:
    """`code`: the rule, `text` the same in words. `misses`: rules that are nearly right, none where there is no
    truth to miss. `concepts` it is made of. `clean`: the rule without its corruption, or None. `words`: one of them
    names a corruption that is random."""

    text: str
    code: str
    misses: tuple[str, ...]
    concepts: tuple[str, ...]
    clean: str | None = None
    words: tuple[str, ...] = ()


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two bool arrays; NaN where both are empty."""
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else np.nan


@dataclass(frozen=True, eq=False)
class Generator:
    """`parts`: bool `[tokens]` each, on all of which a function must fire. `seed`: of every draw. `nets`: those made so
    far, by name, as `evaluate` takes them."""

    ground: Ground
    parts: Sequence[np.ndarray]
    seed: int

    @cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, 11))

    @cached_property
    def nets(self) -> dict[str, Net]:
        return {}

    @cached_property
    def pool(self) -> list[str]:
        """Concepts of a fitting density that are not about the spelling."""
        real = int((~self.ground.special).sum())
        names = [c.name for c in self.ground.table.token_concepts]
        share = np.asarray(self.ground.matrix.sum(axis=1)).ravel() / real
        return [
            name for name, s in zip(names, share, strict=True)
            if RARE <= s <= COMMON and name not in self.ground.domain.syntax
        ]  # fmt: skip

    @cached_property
    def free(self) -> list[str]:
        """Those of `pool` that the token's text leaves open: half of their tokens at least are written like others that
        do not carry the concept."""
        texts = np.unique(self.ground.texts.astype(str), return_inverse=True)[1]
        found = []
        for name in self.pool:
            carried = self.ground.carries(name)
            without = np.bincount(texts[~carried], minlength=texts.max() + 1) > 0
            if without[texts[carried]].mean() >= 0.5:
                found.append(name)
        return found

    @cached_property
    def matched(self) -> list[str]:
        """Those of `free` that are matched by patterns."""
        group = {concept.name: concept.group for concept in self.ground.table.token_concepts}
        return [name for name in self.free if group[name] in PATTERNS]

    def cell(self, name: str, n: int) -> list[Function]:
        """`n` functions of a cell, all different. Raises InputError where the sequences give too few."""
        found: dict[str, Function] = {}
        for i in range(TRIES):
            if len(found) == n:
                return list(found.values())
            draft = DRAFTS[name](self, len(found) + i // 50)  # kinds in turn; one that never fires is given up
            if draft is not None and draft.code not in found and (made := self._checked(name, draft)) is not None:
                found[draft.code] = made
        raise InputError(f"only {len(found)} of {n} {name} functions fire often enough: give more sequences.")

    def on(self, code: str) -> np.ndarray:
        """bool `[tokens]`."""
        return evaluate(code, self.ground, self.nets) > 0

    def _checked(self, cell: str, draft: Draft) -> Function | None:
        """None for what fires too rarely, too often, or cannot be told from a near miss of it."""
        values = evaluate(draft.code, self.ground, self.nets)
        if not self._fires(values > 0):
            return None
        misses = [evaluate(miss, self.ground, self.nets) for miss in draft.misses]
        clean = None if draft.clean is None else self.on(draft.clean)
        for other in (*misses, *([] if clean is None else [clean])):
            same = (
                np.corrcoef(values, other)[0, 1] if cell == "graded" and other.any() else jaccard(values > 0, other > 0)
            )
            if not (other > 0).any() or not same <= 1 - APART:
                return None
        return Function(cell, draft, np.stack([values, *misses]).astype(np.float32), clean)

    def _fires(self, on: np.ndarray) -> bool:
        return all(LEAST <= np.count_nonzero(on & part) <= MOST * np.count_nonzero(part) for part in self.parts)

    def one(self, names: Sequence[str]) -> str:
        return names[int(self.rng.integers(len(names)))]

    def number(self) -> int:
        return int(self.rng.integers(2**31))

    def near_miss(self, name: str, *others: str) -> str:
        """One of the five concepts most like `name` that is not the same."""
        names = [concept.name for concept in self.ground.table.token_concepts]
        carried = self.ground.carries(name).astype(np.float32)
        both, size = self.ground.matrix @ carried, np.asarray(self.ground.matrix.sum(axis=1)).ravel()
        alike = both / np.maximum(size + carried.sum() - both, 1)
        order = [names[i] for i in np.argsort(-alike, kind="stable") if alike[i] <= 0.9]
        return self.one([n for n in order if n not in (name, *others)][:5])

    def two_misses(self, name: str) -> tuple[str, str]:
        first = self.near_miss(name)
        return first, self.near_miss(name, first)


def atomic(g: Generator, i: int) -> Draft:
    name = g.one(g.matched if i % 2 and g.matched else g.free)
    return Draft(name, has(name), tuple(map(has, g.two_misses(name))), (name,))


def relational(g: Generator, i: int) -> Draft | None:
    name, kind = g.one(g.pool), i % 4
    element, x = g.ground.domain.element, has(name)
    if kind == 3 and (g.ground.partner >= 0).any():
        other = has(g.near_miss(name))
        return Draft(f"ring digit whose partner hangs on: {name}", f"partner({x})", (f"partner({other})", x), (name,))
    if kind >= 2:
        return Draft(f"{element} before: {name}", f"next({x})", (f"near({x}, 2)", x), (name,))
    d = kind + 1
    text = f"{element} with another at distance {d} that is: {name}"
    return Draft(text, f"near({x}, {d})", (f"near({x}, {3 - d})", x), (name,))


def composed(g: Generator, i: int) -> Draft | None:
    a, b = g.one(g.free), g.one(g.pool)
    x, y = has(a), has(b)
    if i % 5 == 4:
        return Draft(f"{a}, in the first half", f"{x} & first_half()", (f"{x} & ~first_half()", x), (a,))
    if not 0.05 < jaccard(g.on(x), g.on(y)) < 0.8:
        return None
    text, code, misses = (
        (f"{a} and {b}", f"{x} & {y}", (x, y)),
        (f"{a} or {b}", f"{x} | {y}", (x, y)),
        (f"either {a} or {b}, not both", f"{x} ^ {y}", (f"{x} | {y}", x)),
        (f"{a} but not {b}", f"{x} & ~{y}", (x, f"{x} & {y}")),
    )[i % 5]
    return Draft(text, code, misses, (a, b))


def graded(g: Generator, i: int) -> Draft:
    kinds = len(g.ground.quantities) and 3
    name = g.one(g.pool)
    x, other = has(name), has(g.near_miss(name))
    if kinds and i % 3 == 0:
        quantity, sign = g.one(list(g.ground.quantities)), int(g.rng.choice([-1, 1]))
        where = g.one(g.free)
        code = f"quantity({quoted(quantity)}, {{}}) * {has(where)}"
        which = "positive" if sign > 0 else "negative"
        k = g.one([q for q in g.ground.quantities if q != quantity] or [quantity])
        return Draft(
            f"{which} part of {quantity} of: {where}", code.format(sign),
            (has(where), f"quantity({quoted(k)}, {-sign if k == quantity else sign}) * {has(where)}"), (where,),
        )  # fmt: skip
    if i % 3 == 1:
        where, k = g.one(g.free), int(g.rng.integers(1, 4))
        code = "saturating(closeness({}), {}) * {}"
        text = f"closeness to {name}, saturating, of: {where}"
        return Draft(
            text, code.format(x, k, has(where)), (code.format(other, k, has(where)), has(where)), (name, where)
        )
    where = g.one(g.free)
    text, code = f"number of {name} within 2 bonds of: {where}", "count({}, 2) * {}"
    return Draft(text, code.format(x, has(where)), (code.format(other, has(where)), has(where)), (name, where))


def bias(g: Generator, i: int) -> Draft | None:
    a, b = g.one(g.free), g.one(g.pool)
    x, y = has(a), has(b)
    on, inside = g.on(x), g.on(f"anywhere({has(b)})")
    if not 0.15 <= (on & inside).sum() / on.sum() <= 0.6:
        return None
    code = f"{x} & ~anywhere({y})"
    return Draft(f"{a}, except in sequences with {b}", code, (f"{x} & anywhere({y})", x), (a, b), clean=x)


def silent(g: Generator, i: int) -> Draft:
    a, seed = g.one(g.free), g.number()
    code = f"{has(a)} & ~chance(0.2, {seed})"
    words = ("random", "not always", "sometimes", "unreliabl", "80 %", "20 %", "most of the")
    misses = tuple(f"{has(n)} & ~chance(0.2, {seed})" for n in g.two_misses(a))
    return Draft(f"{a}, silent at random 20 %", code, misses, (a,), clean=has(a), words=words)


def noise(g: Generator, i: int) -> Draft:
    a, seed = g.one(g.free), g.number()
    x = has(a)
    share = round(0.5 * float(g.on(x).mean()), 6)  # a third of what fires is noise
    code = f"({{}} | chance({share}, {seed})) * strength({seed + 1})"
    words = ("random", "noise", "noisy", "unreliabl", "spurious", "at times elsewhere")
    misses = tuple(code.format(has(n)) for n in g.two_misses(a))
    return Draft(f"{a}, with noise", code.format(x), misses, (a,), clean=f"{x} * strength({seed + 1})", words=words)


def two_concepts(g: Generator, i: int) -> Draft | None:
    a, b = g.one(g.free), g.one(g.free)
    x, y = has(a), has(b)
    small, large = sorted((g.on(x).sum(), g.on(y).sum()))
    if jaccard(g.on(x), g.on(y)) > 0.01 or large > 3 * small:
        return None
    return Draft(f"{a}; and, unrelated, {b}", f"{x} | {y}", (x, y), (a, b), clean=x if g.on(x).sum() == large else y)


def learned(g: Generator, i: int) -> Draft | None:
    draft = (atomic, relational, composed)[i % 3](g, i // 3)
    if draft is None or not g._fires(g.on(draft.code)):
        return None
    name = f"net {len(g.nets)}"
    g.nets[name] = fitted(g.ground, evaluate(draft.code, g.ground), g.parts[0], seed=g.number())
    other = (f"{draft.code} & first_half()", draft.misses[0])
    return Draft(f"a small net fitted to: {draft.text}", f'learned("{name}")', other, draft.concepts)


def none(g: Generator, i: int) -> Draft | None:
    if i % 2:
        return Draft("tokens at random", f"chance({round(float(g.rng.uniform(0.01, 0.1)), 3)}, {g.number()})", (), ())
    texts, counts = np.unique(g.ground.texts[~g.ground.special].astype(str), return_counts=True)
    kind = dict(zip(g.ground.texts, (unit.kind for unit in g.ground.units), strict=True))
    # a protein has tokens of one kind only
    sort = np.asarray([text if kind[text] == "residue" else kind[text] for text in texts])
    for _ in range(TRIES):
        chosen = np.sort(g.rng.choice(len(texts), 4, replace=False, p=counts / counts.sum()))
        sizes = [counts[chosen][sort[chosen] == one].sum() for one in np.unique(sort[chosen])]
        if max(sizes) <= 0.5 * sum(sizes):  # one token, or one sort of token, would be a concept
            said = ", ".join(quoted(str(texts[t])) for t in chosen)
            return Draft(f"the tokens {said}", f"token({said})", (), ())
    return None


DRAFTS: dict[str, Callable[[Generator, int], Draft | None]] = {
    "atomic": atomic, "relational": relational, "composed": composed, "graded": graded, "bias": bias,
    "silent": silent, "noise": noise, "two_concepts": two_concepts, "learned": learned, "none": none,
}  # fmt: skip

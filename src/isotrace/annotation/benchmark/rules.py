"""Rules: a small language in which a function of tokens is written, and a labeler may answer.

    carries("pyridine")            tokens with a concept           token("N", "n")     tokens by their text
    element()                      tokens that write an element    anywhere(x)         all tokens of a sequence with x
    near(x, d)                     written element has one of x exactly d bonds away
    next(x)                        the element written next is one of x
    partner(x)                     token of a pair (ring digit) whose other token hangs on x
    first_half()                   first half of the sequence      chance(p, seed)     a share p of tokens, at random
    count(x, d)                    elements of x within d bonds    closeness(x)        1 / (1 + bonds to the nearest x)
    quantity("NAME", sign)         positive part of sign · quantity of the element
    saturating(v, k)               v / (v + k)                     strength(seed)      random factors around 1
    x & y   x | y   x ^ y   ~x     of tokens                       v * w   v + w       of numbers

An answer is read as a syntax tree of these alone: nothing else is run.
"""

import ast
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.sparse.csgraph import dijkstra
from scipy.special import ndtri

from isotrace.annotation.benchmark.ground import Ground
from isotrace.base.errors import InputError

MAX_CHARACTERS, MAX_DISTANCE = 1_000, 8
Net = Callable[[Ground], np.ndarray]
_TOKENS = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor}
_NUMBERS = {ast.Mult: operator.mul, ast.Add: operator.add}


def evaluate(code: str, ground: Ground, nets: Mapping[str, Net] | None = None) -> np.ndarray:
    """float64 `[tokens]` ≥ 0: the activation by the rule `code`, 0 on special tokens. `nets`: for `learned("NAME")`.

    Raises InputError for what is no rule, or names a concept that is not in the list of `ground`."""
    if len(code) > MAX_CHARACTERS:
        raise InputError(f"the rule has {len(code)} characters: write one of at most {MAX_CHARACTERS}.")
    try:
        tree = ast.parse(code, mode="eval").body
        found = np.asarray(_value(tree, ground, nets or {}))
    except (SyntaxError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{code!r} is no rule ({error}): see isotrace.annotation.benchmark.rules.") from None
    if found.shape != (ground.table.n_tokens,) or not np.isfinite(found).all():
        raise InputError(f"{code!r} gives no finite number of every token: write one that does.")
    return np.where(ground.special, 0.0, np.maximum(found.astype(np.float64), 0.0))


def quoted(text: str) -> str:
    """As a rule writes it, with its quotation marks."""
    return json.dumps(text, ensure_ascii=False)


def carries(concept: str) -> str:
    """The rule of one concept."""
    return f"carries({quoted(concept)})"


def _value(node: ast.AST, ground: Ground, nets: Mapping[str, Net]) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.Invert(), operand=of):
            return ~_tokens(_value(of, ground, nets))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _TOKENS:
            return _TOKENS[type(op)](_tokens(_value(left, ground, nets)), _tokens(_value(right, ground, nets)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _NUMBERS:
            a, b = (_value(side, ground, nets) for side in (left, right))
            return _NUMBERS[type(op)](np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
        case ast.Call(func=ast.Name(id="learned"), args=[ast.Constant(value=str() as name)], keywords=[]):
            if name not in nets:
                raise InputError(f"no net {name!r}.")
            return nets[name](ground)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in WORDS:
            return WORDS[name](ground, *(_value(arg, ground, nets) for arg in args))
    raise ValueError(f"{ast.unparse(node)!r} is not in the language")  # pyright: ignore


def _tokens(x: Any) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype != bool:
        raise TypeError("a number where tokens are wanted")
    return x


def _distance(d: Any) -> int:
    if type(d) is not int or not 1 <= d <= MAX_DISTANCE:
        raise TypeError(f"a distance must be a whole number from 1 to {MAX_DISTANCE}")
    return d


def _number(v: Any, low: float = -np.inf, high: float = np.inf) -> float:
    if not isinstance(v, int | float) or not low <= v <= high:
        raise TypeError(f"{v!r} is no number from {low} to {high}")
    return v


def _near(ground: Ground, x: Any, d: Any) -> np.ndarray:
    return ground.on_tokens(ground.shell(_distance(d)) @ ground.of_elements(_tokens(x)) > 0) > 0


def _next(ground: Ground, x: Any) -> np.ndarray:
    has = ground.of_elements(_tokens(x))
    after = np.r_[has[1:], False]
    after[ground.element_ptr[1:] - 1] = False  # the last of a sequence has none after it
    return ground.on_tokens(after) > 0


def _partner(ground: Ground, x: Any) -> np.ndarray:
    has = np.r_[ground.of_elements(_tokens(x)), False]
    return (ground.partner >= 0) & has[ground.last_element[ground.partner]]


def _anywhere(ground: Ground, x: Any) -> np.ndarray:
    owner = ground.table.sequence_of
    return np.bincount(owner[_tokens(x)], minlength=ground.table.n_sequences)[owner] > 0


def _count(ground: Ground, x: Any, d: Any) -> np.ndarray:
    has = ground.of_elements(_tokens(x)).astype(np.float64)
    return ground.on_tokens(np.sum([ground.shell(i) @ has for i in range(1, _distance(d) + 1)], axis=0))


def _closeness(ground: Ground, x: Any) -> np.ndarray:
    sources = np.flatnonzero(ground.of_elements(_tokens(x)))
    if not len(sources):
        return np.zeros(ground.table.n_tokens)
    far = dijkstra(ground.bonds, indices=sources, unweighted=True, min_only=True)
    return ground.on_tokens(1 / (1 + far))


def _quantity(ground: Ground, name: Any, sign: Any) -> np.ndarray:
    values = np.nan_to_num(_number(sign) * ground.quantity(name))
    return ground.on_tokens(np.maximum(values, 0))


def _saturating(ground: Ground, v: Any, k: Any) -> np.ndarray:
    v = np.asarray(v, dtype=np.float64)
    return v / (v + _number(k, 1e-6))


WORDS: dict[str, Callable[..., Any]] = {
    "carries": lambda ground, name: ground.carries(name),
    "token": lambda ground, *texts: np.isin(ground.texts.astype(str), [str(t) for t in texts]),
    "element": lambda ground: np.diff(ground.writes.indptr) > 0,
    "near": _near,
    "next": _next,
    "partner": _partner,
    "anywhere": _anywhere,
    "first_half": lambda ground: ground.place_share < 0.5,
    "chance": lambda ground, p, seed: ground.drawn(int(seed)) < _number(p, 0, 1),
    "strength": lambda ground, seed: np.exp(0.5 * ndtri(np.clip(ground.drawn(int(seed)), 1e-9, 1 - 1e-9))),
    "count": _count,
    "closeness": _closeness,
    "quantity": _quantity,
    "saturating": _saturating,
}

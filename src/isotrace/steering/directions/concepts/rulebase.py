"""Rules over concepts in an open world, and all that follows from what is known, with proofs.

    nitro and aromatic atom -> alert; alert and not "proline or glycine" implies reject and not keep

A rule has a body of names, `and`, `or`, `not` and parentheses (`not` binds closest, `or` least), then `->` or
`implies`, and concludes one name or several, each as it stands or after `not`. Rules are separated by `;` or line ends.
Words that follow each other are one name; one that holds `and`, `or`, `not`, `implies`, `->`, `;` or parentheses is
written in double quotes.

What is not known is neither true nor false (Kleene): a rule fires where its body is known to be true, so one with a
negation fires on a concept that is known to be false, seen so or concluded so, and never on one of which nothing is
known. No rule is read backwards.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from isotrace.base.errors import InputError

Fact = tuple[str, bool]
WORDS = ("and", "or", "not", "implies")
_TOKEN = re.compile(r'"(?P<quoted>[^"]+)"|(?P<sign>->|[();\n])|(?P<word>(?:(?!->)[^\s();"])+)')


@dataclass(frozen=True)
class Formula:
    """A `name`, or what `how` makes of `parts`."""

    how: Literal["name", "not", "and", "or"]
    name: str = ""
    parts: tuple["Formula", ...] = ()

    def truth(self, known: Mapping[str, bool]) -> bool | None:
        """None where what is known does not decide it."""
        if self.how == "name":
            return known.get(self.name)
        values = [part.truth(known) for part in self.parts]
        if self.how == "not":
            return None if values[0] is None else not values[0]
        decides = self.how == "or"
        return decides if decides in values else None if None in values else not decides

    def grounds(self, known: Mapping[str, bool]) -> Iterator[Fact]:
        """What is known that makes it as it is, where it is decided."""
        if self.how == "name":
            yield self.name, known[self.name]
            return
        value = self.truth(known)
        for part in self.parts:
            if self.how == "not" or part.truth(known) == value:
                yield from part.grounds(known)

    def names(self) -> Iterator[str]:
        if self.how == "name":
            yield self.name
        for part in self.parts:
            yield from part.names()


@dataclass(frozen=True)
class Rule:
    body: Formula
    heads: tuple[Fact, ...]
    text: str


@dataclass(frozen=True)
class Step:
    """Why something is concluded: the rule, and what was known that made its body true."""

    fact: Fact
    rule: Rule
    grounds: tuple[Fact, ...]


@dataclass(frozen=True)
class Closure:
    """`known`: what was given and what follows. `steps`: of each concluded name, in the order of conclusion, premises
    first. `contradicted`: names that are also concluded to be the opposite of what is known; those of which both are
    concluded at once are not known."""

    known: dict[str, bool]
    steps: dict[str, Step]
    contradicted: tuple[str, ...]

    @property
    def derived(self) -> tuple[str, ...]:
        """Names concluded to be true."""
        return tuple(name for name in self.steps if self.known[name])

    def leaves(self, name: str) -> tuple[Fact, ...]:
        """What was given that a known name rests on."""
        if name not in self.steps:
            return ((name, self.known[name]),)
        return tuple(dict.fromkeys(leaf for given, _ in self.steps[name].grounds for leaf in self.leaves(given)))

    def proof(self, name: str) -> str:
        """A line for each step that leads to a concluded name. Raises InputError for one that is not concluded."""
        if name not in self.steps:
            raise InputError(f"{name!r} is not concluded: {', '.join(self.steps) or 'nothing'} is.")
        needed = {name}
        for other in reversed(self.steps):  # premises come before what they lead to
            if other in needed:
                needed |= {given for given, _ in self.steps[other].grounds}
        return "\n".join(
            f"{_said(step.fact)}, for {', '.join(map(_said, step.grounds))}, by: {step.rule.text}"
            for other, step in self.steps.items()
            if other in needed
        )


@dataclass(frozen=True)
class RuleBase:
    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InputError for what is no rule, saying where, and for no rule at all."""
        found, start = [], 0
        tokens = [*_tokens(text), (";", "sign", len(text))]
        for i, (token, kind, place) in enumerate(tokens):
            if kind == "sign" and token in ";\n":
                if start < i:
                    begin = tokens[start][2]
                    found.append(_Reader(text[begin:place].strip(), tokens[start:i]).rule())
                start = i + 1
        if not found:
            raise InputError("there is no rule: write one, as in 'nitro and aromatic atom -> alert'.")
        return cls(tuple(found))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names that rules conclude."""
        return tuple(dict.fromkeys(name for rule in self.rules for name, _ in rule.heads))

    @property
    def premises(self) -> tuple[str, ...]:
        """Names that only bodies hold, so that they have to be seen."""
        names = dict.fromkeys(name for rule in self.rules for name in rule.body.names())
        return tuple(name for name in names if name not in self.heads)

    def closure(self, given: Mapping[str, bool]) -> Closure:
        """All that follows, by rounds: each applies all rules to what was known after the one before, so that the order
        of rules is without effect, and the last adds nothing."""
        known, steps, contradicted = dict(given), dict[str, Step](), dict[str, None]()
        while True:
            new: dict[Fact, Step] = {}
            for rule in self.rules:
                if rule.body.truth(known):
                    grounds = tuple(dict.fromkeys(rule.body.grounds(known)))
                    new |= {fact: Step(fact, rule, grounds) for fact in rule.heads if fact not in new}
            for name, value in new:
                if known.get(name) == (not value) or (name, not value) in new:
                    contradicted[name] = None
            fresh = {f[0]: step for f, step in new.items() if f[0] not in known and f[0] not in contradicted}
            if not fresh:
                return Closure(known, steps, tuple(sorted(contradicted)))
            steps |= fresh
            known |= {name: step.fact[1] for name, step in fresh.items()}


def _said(fact: Fact) -> str:
    return fact[0] if fact[1] else f"not {fact[0]}"


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """(token, kind, place)."""
    place = 0
    while place < len(text):
        if text[place].isspace() and text[place] != "\n":
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            raise InputError(f"a rule has a quotation mark without its other at {text[place:]!r}: close it.")
        yield found[found.lastgroup or 0], found.lastgroup or "", place
        place = found.end()


class _Reader:
    """Of one rule."""

    def __init__(self, text: str, tokens: list[tuple[str, str, int]]) -> None:
        self.text, self.tokens, self.at = text, tokens, 0

    def rule(self) -> Rule:
        body = self._either()
        if not self._take("->", "implies"):
            raise self._fault("'->' and what it concludes")
        heads = self._either()
        if self.at < len(self.tokens):
            raise self._fault("the end of the rule")
        literals = heads.parts if heads.how == "and" else (heads,)
        facts = []
        for one in literals:
            inner = one.parts[0] if one.how == "not" else one
            if inner.how != "name":
                raise InputError(f"the rule {self.text!r} concludes more than names, joined by 'and': split it.")
            facts.append((inner.name, one.how == "name"))
        if len({name for name, _ in facts}) < len(facts):
            raise InputError(f"the rule {self.text!r} concludes one name twice: leave one out.")
        return Rule(body, tuple(facts), self.text)

    def _either(self) -> Formula:
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Formula("or", parts=tuple(parts))

    def _both(self) -> Formula:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else Formula("and", parts=tuple(parts))

    def _one(self) -> Formula:
        if self._take("not"):
            return Formula("not", parts=(self._one(),))
        if self._take("("):
            inner = self._either()
            if not self._take(")"):
                raise self._fault("')'")
            return inner
        words = []
        while self.at < len(self.tokens) and self._kind() == "name":
            words.append(self.tokens[self.at])
            self.at += 1
        if not words or (len(words) > 1 and any(kind == "quoted" for _, kind, _ in words)):
            raise self._fault("a name")
        return Formula("name", " ".join(word for word, _, _ in words))

    def _kind(self) -> str:
        """The keyword or sign that is next, or `name`."""
        token, kind, _ = self.tokens[self.at]
        if kind == "quoted" or (kind == "word" and token.lower() not in WORDS):
            return "name"
        return token.lower()

    def _take(self, *wanted: str) -> bool:
        found = self.at < len(self.tokens) and self._kind() in wanted
        self.at += found
        return found

    def _fault(self, wanted: str) -> InputError:
        rest = self.tokens[self.at :]
        where = f"before {rest[0][0]!r}" if rest else "at its end"
        return InputError(f"the rule {self.text!r} lacks {wanted} {where}: write 'a and not b -> c'.")

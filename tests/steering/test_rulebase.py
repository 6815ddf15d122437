"""Rules: what follows from what is known, in an open world, with a proof of every step."""

import random

import pytest

from isotrace.base.errors import InputError
from isotrace.steering.directions.concepts.rulebase import RuleBase


def closure(rules, **given):
    return RuleBase.parse(rules).closure(given)


def known(rules, **given):
    return closure(rules, **given).known


def test_a_chain_of_five_hops_is_followed_to_its_end():
    found = closure("e -> f; d -> e; c -> d; b and x -> c; a -> b", a=True, x=True)
    assert found.derived == ("b", "c", "d", "e", "f")
    assert found.leaves("f") == (("a", True), ("x", True))
    assert found.proof("c").splitlines() == ["b, for a, by: a -> b", "c, for b, x, by: b and x -> c"]
    assert len(found.proof("f").splitlines()) == 5
    assert closure("e -> f; d -> e; c -> d; b and x -> c; a -> b", a=True).derived == ("b",)


def test_what_is_not_known_makes_no_negation_true():
    rule = "a and not b -> c"
    assert "c" not in known(rule, a=True)
    assert "c" not in known(rule, a=True, b=True)
    assert known(rule, a=True, b=False)["c"]
    assert known(f"{rule}; d -> not b", a=True, d=True)["c"]  # a negation that is concluded
    assert closure("d -> not b", d=True).derived == ()  # and is no concept to write


@pytest.mark.parametrize(
    ("body", "given", "value"),
    [
        ("a or b", {"a": True}, True),
        ("a or b", {"a": False}, None),
        ("a or b", {"a": False, "b": False}, False),
        ("a and b", {"a": False}, False),
        ("a and b", {"a": True}, None),
        ("not (a and b)", {"a": False}, True),
        ("not a or b and c", {"a": True, "b": True, "c": True}, True),
        ("not (a or b) and c", {"a": False, "b": True, "c": True}, False),
        ("not not a", {"a": True}, True),
    ],
)
def test_bodies_have_three_values(body, given, value):
    rule = RuleBase.parse(f"{body} -> z").rules[0]
    assert rule.body.truth(given) is value
    if value is not None:
        assert rule.body.truth(dict(rule.body.grounds(given))) is value


def test_what_contradicts_itself_is_said_and_not_used():
    found = closure("a -> b; c -> not b; b -> d; not b -> d", a=True, c=True)
    assert found.contradicted == ("b",)
    assert {*found.known} == {"a", "c"}
    seen = closure("a -> b; not b -> e", a=True, b=False)
    assert (seen.contradicted, seen.known["b"], seen.derived) == (("b",), False, ("e",))


def random_rules(rng):
    names = "abcdefgh"
    literal = lambda: rng.choice(["", "not "]) + rng.choice(names)  # noqa: E731
    bodies = [f" {rng.choice(['and', 'or'])} ".join(literal() for _ in range(rng.randint(1, 3))) for _ in range(10)]
    return [f"{body} -> {literal()}" for body in bodies]


def test_closures_are_closed_sound_and_do_not_depend_on_the_order_of_rules():
    rng, concluded = random.Random(0), 0
    for _ in range(200):
        rules = random_rules(rng)
        given = {name: rng.random() < 0.6 for name in rng.sample("abcdefgh", 3)}
        base = RuleBase.parse("; ".join(rules))
        found, other = base.closure(given), RuleBase.parse("; ".join(rules[::-1])).closure(given)
        assert (found.known, found.contradicted) == (other.known, other.contradicted)
        for rule in base.rules:
            if rule.body.truth(found.known):
                assert all(found.known.get(n) == v or n in found.contradicted for n, v in rule.heads)
        before = dict(given)
        for name, step in found.steps.items():
            assert step.rule.body.truth(dict(step.grounds))
            assert all(before[premise] == value for premise, value in step.grounds)
            before[name] = step.fact[1]
        assert before == found.known
        concluded += len(found.steps)
    assert concluded > 100


def test_names_of_many_words_signs_and_quotes():
    base = RuleBase.parse(
        "N-glycosylation site and not Walker A -> x and not y\n"
        '"proline or glycine" implies "x y";passes Lipinski\'s rules AND logP < 3.5->good\n\n'
    )
    assert base.premises == (
        "N-glycosylation site", "Walker A", "proline or glycine", "passes Lipinski's rules", "logP < 3.5",
    )  # fmt: skip
    assert base.heads == ("x", "y", "x y", "good")
    assert base.rules[0].heads == (("x", True), ("y", False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no rule"),
        ("a and b", "lacks '->' and what it concludes at its end"),
        ("a ->", "lacks a name at its end"),
        ("a and -> b", "lacks a name before '->'"),
        ("(a or b -> c", r"lacks '\)' before '->'"),
        ("a -> b -> c", "lacks the end of the rule before '->'"),
        ("a -> b or c", "concludes more than names"),
        ("a -> not (b and c)", "concludes more than names"),
        ("a -> b and not b", "one name twice"),
        ('a "b c" -> d', "lacks a name"),
        ('a and "b -> c', "quotation mark"),
    ],
)
def test_what_is_no_rule_is_said_in_a_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        RuleBase.parse(text)
    assert "\n" not in str(caught.value)


def test_only_conclusions_have_proofs():
    with pytest.raises(InputError, match="'a' is not concluded: b is"):
        closure("a -> b", a=True).proof("a")

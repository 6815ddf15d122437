"""Two chains, residue by residue."""

import pytest

from isotrace.base.errors import InputError
from isotrace.domains.domain import domain_of

PROTEIN = domain_of("protein")


def reading(text):
    spans = [(0, 0), *((i, i + 1) for i in range(len(text))), (len(text), len(text))]
    return PROTEIN.read(text, ["<cls>", *text, "<eos>"], spans)


def test_every_residue_has_its_place():
    a, b = reading("MKTAYIAK"), reading("MKSAYIAR")
    found = PROTEIN.align(a, b)
    assert found.partner == tuple(range(10))
    assert found.changed == ({2, 7}, {2, 7})
    assert (found.n_shared, found.notes) == (6, ())
    weights = [0.0] * 3 + [2.0] + [0.0] * 6
    first, second = PROTEIN.draw_pair(a, b, found, (weights, [-w for w in weights]), 2.0)
    assert 'data-element="2"' in first
    assert 'fill="#e8832a"' in first
    assert 'fill="#4a8fd3"' in second
    assert first.count('class="outlined"') == second.count('class="outlined"') == 2


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("MKTA", "MKTAY", "4 and 5 residues cannot be compared"),
        ("MKTA", "MKTA", "is given twice"),
        ("MKTA", "YKGA", "2 residues in common"),
    ],
)
def test_what_cannot_be_compared(a, b, reason):
    with pytest.raises(InputError, match=reason):
        PROTEIN.align(reading(a), reading(b))


def test_reactions_are_not_compared():
    reaction = domain_of("reaction")
    one = reaction.read("CC>>CO", ["CC>>CO"], [(0, 6)])
    with pytest.raises(InputError, match="reactions cannot be compared"):
        reaction.align(one, one)

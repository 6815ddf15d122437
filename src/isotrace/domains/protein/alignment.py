"""Two chains of equal length aligned residue by residue: variants of one protein."""

from isotrace.base.errors import InputError
from isotrace.domains.alignment import SHARED, Alignment, with_special
from isotrace.domains.domain import Reading


def align(a: Reading, b: Reading, one: str, other: str) -> Alignment:
    """`one`, `other`: the residues of either. Raises InputError for chains of other lengths, the same chain, and chains
    with fewer than SHARED residues alike."""
    if len(one) != len(other):
        raise InputError(
            f"sequences of {len(one)} and {len(other)} residues cannot be compared residue by residue: give two of "
            "equal length."
        )
    if one == other:
        raise InputError(f"{a.text[:40]!r} is given twice: give another sequence to compare with.")
    changed = frozenset(i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y)
    shared = len(one) - len(changed)
    if shared < SHARED:
        raise InputError(
            f"{a.text[:40]!r} and {b.text[:40]!r} have {shared} residues in common, too few to align (at least "
            f"{SHARED}): give variants of one sequence."
        )
    writes = {elements: token for token, elements in enumerate(b.elements) if elements}
    partner = [writes.get(elements) for elements in a.elements]
    return Alignment(with_special(a, b, partner), (changed, changed), shared)

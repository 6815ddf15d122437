"""Which token of one sequence stands where which of another does."""

from dataclasses import dataclass

from isotrace.domains.domain import Reading

SHARED = 3
"""Atoms or residues that two sequences must have in common to be compared."""


@dataclass(frozen=True)
class Alignment:
    """Of a sequence A with a sequence B.

    `partner[i]` is the token of B that stands where token i of A does, None where none does. `changed`: the atoms or
    residues of A, and those of B, outside what both have in common, which are `n_shared`. `notes`: plain sentences
    about what the alignment could not do.
    """

    partner: tuple[int | None, ...]
    changed: tuple[frozenset[int], frozenset[int]]
    n_shared: int
    notes: tuple[str, ...] = ()

    def back(self, n_tokens: int) -> tuple[int | None, ...]:
        """The token of A at each of the `n_tokens` of B."""
        found: list[int | None] = [None] * n_tokens
        for own, other in enumerate(self.partner):
            if other is not None:
                found[other] = own
        return tuple(found)


def with_special(a: Reading, b: Reading, partner: list[int | None]) -> tuple[int | None, ...]:
    """`partner` with the special tokens that stand at either end of both paired, as far as they are the same."""
    sizes = len(a.units), len(b.units)
    for places in (zip(*map(range, sizes), strict=False), zip(*(range(n - 1, -1, -1) for n in sizes), strict=False)):
        for own, other in places:
            one, there = a.units[own], b.units[other]
            if one.kind != "special" or (there.kind, there.text) != ("special", one.text):
                break
            partner[own] = other
    return tuple(partner)

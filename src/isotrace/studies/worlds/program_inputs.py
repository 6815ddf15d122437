"""Clean and corrupt sequences for the programs of `programs`; the two of a pair are equally long and differ in what the
program says of them."""

import numpy as np

Pairs = list[tuple[str, str]]


def depth_pairs(n: int, seed: int) -> Pairs:
    """Three pairs of brackets and four atoms. Corrupt: another depth of the same tokens, atoms in the same places."""
    words = {"1": ["()()()"], "2": ["(())()", "()(())", "(()())"], "3": ["((()))"]}
    rng, pairs = np.random.default_rng(seed), []
    for i in range(n):
        clean = str(i % 3 + 1)
        corrupt = str(rng.choice([d for d in words if d != clean]))
        places, atoms = (
            set(rng.choice(10, 4, replace=False).tolist()),
            rng.permutation([*("CCCN" if i % 2 else "NNNC")]),
        )
        sides = []
        for d in (clean, corrupt):
            letters, brackets = iter(atoms.tolist()), iter(str(rng.choice(words[d])))
            sides.append("".join(next(letters) if p in places else next(brackets) for p in range(10)))
        pairs.append(tuple(sides))
    return pairs


NESTED = ("()()()", "(())()", "()(())", "(()())", "((()))")
OTHER = {"(": "[", "[": "(", ")": "]", "]": ")"}


def partner_pairs(n: int, seed: int) -> Pairs:
    """Three pairs of brackets, nested whatever their kinds, and three atoms; a closing bracket stands last, which
    closes one of its own kind in every other pair. Corrupt: in every third pair the last bracket is of the other kind
    and so is nothing else; else the brackets are nested otherwise, their kinds drawn anew."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(n):
        places = set(rng.choice(8, 3, replace=False).tolist())
        clean = _brackets(rng, bool(i % 2))
        corrupt = (*clean[:-1], OTHER[clean[-1]])
        while i % 3 and (corrupt[-1] != clean[-1] or _shape(corrupt) == _shape(clean)):
            corrupt = _brackets(rng, not i % 2)
        sides = (iter(clean), iter(corrupt))
        pairs.append(tuple("".join("C" if p in places else next(side) for p in range(9)) for side in sides))
    return pairs


def _shape(brackets: tuple[str, ...]) -> list[bool]:
    return [bracket in "([" for bracket in brackets]


def _brackets(rng: np.random.Generator, matched: bool) -> tuple[str, ...]:
    """`matched`: the last bracket is of the kind of the one that it closes."""
    found = [mark if rng.integers(2) else OTHER[mark] for mark in str(rng.choice(NESTED))]
    opened, opener = [], ""
    for bracket in found:
        opener = opened.pop() if bracket in ")]" else opened.append(bracket)
    kind = {"(": ")", "[": "]"}[str(opener)]
    return (*found[:-1], kind if matched else OTHER[kind])


def histogram_pairs(n: int, seed: int) -> Pairs:
    """Four elements, one to four times each. Corrupt: one of another count stands last, and that one in its place."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(n):
        times = [i % 4 + 1, *rng.permutation([c for c in (1, 2, 3, 4) if c != i % 4 + 1]).tolist()]
        kinds = rng.permutation([*"CNOS"]).tolist()
        clean = [kind for kind, count in zip(kinds, times, strict=True) for _ in range(count)]
        rest = rng.permutation(clean[1:]).tolist()
        clean = [*rest, kinds[0]]
        at = int(rng.choice([p for p, t in enumerate(rest) if t != kinds[0]]))
        corrupt = [*clean]
        corrupt[at], corrupt[-1] = corrupt[-1], corrupt[at]
        pairs.append(("".join(clean), "".join(corrupt)))
    return pairs


def halogen_pairs(n: int, seed: int) -> Pairs:
    """Five halogens, one kind of them more often than the others, and five other atoms likewise. Corrupt: the halogens
    change names, so that another is the most frequent, and so do the others."""
    rng, pairs, groups = np.random.default_rng(seed), [], (("F", "Cl", "Br"), ("C", "N", "O"))
    for i in range(n):
        places, turns = rng.permutation(10), [i % 3, int(rng.integers(3))]
        times = [((3, 1, 1), (3, 2, 0))[at] for at in (i % 2, int(rng.integers(2)))]
        shifts, sides = rng.integers(1, 3, 2), []
        for moved in (0 * shifts, shifts):
            atoms = []
            for kinds, turn, count, shift in zip(groups, turns, times, moved, strict=True):
                atoms += [kinds[(k + turn + shift) % 3] for k in range(3) for _ in range(count[k])]
            sides.append("".join(atoms[p] for p in places))
        pairs.append(tuple(sides))
    return pairs


def strand_pairs(n: int, seed: int) -> Pairs:
    """One of the two motifs beside one of the decoys AG and CT. Corrupt: both written backwards, so that the letters
    are the same; the other letters make neither."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(n):
        motif, decoy = ("AC", "GT")[i % 2], str(rng.choice(["AG", "CT"]))
        sides = [motif, motif]
        while [any(m in side for m in ("AC", "GT")) for side in sides] != [True, False]:
            fillers, order = rng.choice([*"ACGT"], 6).tolist(), rng.permutation(8)
            both = ([motif, decoy, *fillers], [motif[::-1], decoy[::-1], *fillers])
            sides = ["".join(pieces[at] for at in order) for pieces in both]
        pairs.append(tuple(sides))
    return pairs

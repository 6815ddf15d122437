"""Groups of antibodies of one clone: the split that keeps descendants of one B cell together.

Two antibodies are linked when their main variable domains (the heavy one of an scFv) are of one chain type, their
CDR3 have one length and agree in at least 80 % of positions, and the residues before them (IMGT 1–104, compared
position by position, insertions left out) agree in at least 80 %. The first is the usual clonotype threshold for
heavy chains (Gupta et al. 2015 and others); the second stands for “same V gene”, which cannot be known from the
protein. Light chains need it most: the same short CDR3 arises in many clones. Groups are connected components.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from isotrace.domains.protein.clusters import component_names, components_of
from isotrace.domains.protein.numbering import REGIONS, Antibody

IDENTITY = 0.8
_LAST = REGIONS["FR3"][1]
_BLOCK = 512


def clone_groups(antibodies: Sequence[Antibody]) -> list[str]:
    """A name per antibody, equal within a clone; see the module."""
    alike: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, antibody in enumerate(antibodies):
        alike[antibody.main.chain, len(antibody.main.region("CDR3"))].append(i)
    links = [np.zeros((0, 2), dtype=np.int64)]
    for members in alike.values():
        index = np.array(members)
        cdr3 = np.array([_letters(antibodies[i], "CDR3") for i in members], dtype=np.uint8)
        before = np.stack([_aligned(antibodies[i]) for i in members])
        for first in range(0, len(members), _BLOCK):
            block = slice(first, first + _BLOCK)
            same = np.zeros((len(cdr3[block]), len(cdr3)), dtype=np.int16)
            for column in cdr3.T:
                same += column[block, None] == column[None]
            a, b = np.nonzero(same >= IDENTITY * cdr3.shape[1])
            a += first
            a, b = a[a < b], b[a < b]
            agree = (before[a] == before[b]) & (before[a] > 0)
            either = (before[a] > 0) | (before[b] > 0)
            kept = agree.sum(axis=1) >= IDENTITY * either.sum(axis=1)
            links.append(np.stack([index[a[kept]], index[b[kept]]], axis=1))
    labels = components_of(np.concatenate(links), len(antibodies))
    return component_names([antibody.sequence for antibody in antibodies], labels)


def _letters(antibody: Antibody, region: str) -> list[int]:
    return [ord(antibody.sequence[i]) for i in antibody.main.region(region)]


def _aligned(antibody: Antibody) -> np.ndarray:
    """uint8 `[104]`: the letter at each IMGT position before the CDR3, 0 where there is none."""
    row = np.zeros(_LAST, dtype=np.uint8)
    domain = antibody.main
    for residue, (number, insertion) in zip(domain.residues, domain.positions, strict=True):
        if number <= _LAST and not insertion:
            row[number - 1] = ord(antibody.sequence[residue])
    return row

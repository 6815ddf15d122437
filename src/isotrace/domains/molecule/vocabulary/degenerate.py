"""Molecules that generators fall into: long plain chains, one token over and over, a start that lost its rings."""

import re

from rdkit import Chem

from isotrace.domains.molecule.tokens import parse

CHAIN_SHARE, RUN = 0.6, 8
PLAIN = Chem.MolFromSmarts("-".join(["[CX4;!R;D1,D2]"] * 4))
TOKENS = re.compile(rf"(\[[^\]]+\]|Br|Cl|[A-Za-z])\1{{{RUN - 1},}}")


def degenerate(text: str, start: str | None) -> str | None:
    """Why it is no design, or None. More than CHAIN_SHARE of its heavy atoms in unbranched acyclic chains of four or
    more sp³ carbons, the same atom token RUN times running, or no ring where `start` has some. Raises InputError for a
    text that is no molecule."""
    mol = parse(text)
    plain = {a for chain in mol.GetSubstructMatches(PLAIN, maxMatches=10**6) for a in chain}
    share = len(plain) / mol.GetNumHeavyAtoms()
    if share > CHAIN_SHARE:
        return f"{share:.0%} of its heavy atoms in plain carbon chains"
    if (run := TOKENS.search(text)) is not None:
        return f"{run[1]} {len(run[0]) // len(run[1])} times running"
    if start is not None and not rings(mol) and rings(parse(start)):
        return "all rings of the start are lost"
    return None


def rings(mol: Chem.Mol) -> int:
    """The molecule is held by a name here: its ring information does not keep it alive, and was read after it was
    gone in one of 25 molecules without one."""
    return mol.GetRingInfo().NumRings()

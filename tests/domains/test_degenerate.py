"""What generators fall into is told from what nature makes."""

import math

import pytest

from isotrace.base.errors import InputError
from isotrace.domains.domain import domain_of

ALPHA_SYNUCLEIN = (  # disordered; UniProt P37840
    "MDVFMKGLSKAKEGVVAAAEKTKQGVAEAAGKTKEGVLYVGSKTKEGVVHGVATVAEKTKEQVTNVGGAV"
    "VTGVTAVAQKTVEGAGSIAAATGFVKKDQLGKNEEGAPQEGILEDMPVDPDNEAYEMPSEEGYQDYEPEA"
)
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
GLYCINE_RICH = "GGYGGGYGGGFGGGNYGGGGSYNDFGNYNNQSSNFGPMKGGNFGGRSSGPYGGGGQYFAKPRNQGGYGGSSSSSSYGSGRRF"  # hnRNP A1, 239-320

protein, molecule = domain_of("protein"), domain_of("molecule")


@pytest.mark.parametrize("chain", [ALPHA_SYNUCLEIN, UBIQUITIN, GLYCINE_RICH])
def test_natural_chains_are_sound(chain):
    """Also one with more glycine than a quarter: it is that from the start."""
    assert protein.degenerate(chain, chain, None) is None


def test_chains_of_one_residue():
    assert protein.degenerate("L" * 40, UBIQUITIN, None) == "100% L"
    drifted = UBIQUITIN[:40] + "L" * 36
    assert protein.degenerate(drifted, UBIQUITIN, None).endswith("% L")
    assert protein.degenerate(GLYCINE_RICH, None, None).endswith("% G"), "without a start the bare rule holds"
    # 12 points more than the start, but below a quarter of the chain
    assert protein.degenerate(UBIQUITIN[:64] + "A" * 10 + UBIQUITIN[74:], UBIQUITIN, None) is None


def test_windows_of_few_residues():
    floor = protein.complexity(ALPHA_SYNUCLEIN)
    assert protein.complexity("AC" * 10) == pytest.approx(math.log(2))
    assert protein.complexity("ACDEFGHIKLMN") == pytest.approx(math.log(12))
    assert protein.complexity("LLLLLLLLLLLL" + UBIQUITIN) == pytest.approx(0, abs=1e-12)
    assert math.isnan(protein.complexity("ACDEFGHIKLM"))
    stuttering = UBIQUITIN[:30] + "SGSGSGSGSGSG" + UBIQUITIN[42:]
    assert protein.degenerate(stuttering, UBIQUITIN, None) is None
    assert protein.degenerate(stuttering, UBIQUITIN, floor) == "12 residues with an entropy of 0.69 nats"
    assert protein.degenerate(UBIQUITIN, UBIQUITIN, floor) is None


def test_molecules():
    assert molecule.degenerate("C" * 16, None, None) == "100% of its heavy atoms in plain carbon chains"
    assert molecule.degenerate("CCCCCCc1ccccc1", "c1ccccc1", None) is None, "half is no majority"
    assert molecule.degenerate("CC(C)(C)CC(C)(C)CC(C)(C)C", None, None) is None, "branched"
    assert molecule.degenerate("OCCOCCOCCOCCO", None, None) is None, "no chain of four carbons"
    assert molecule.degenerate("C1CCCCCCCCCCC1", None, None) == "C 11 times running"
    assert molecule.degenerate("c1ccc2cc3ccccc3cc2c1", None, None) is None, "digits stand between"
    assert molecule.degenerate("[NH+]" * 8 + "C", None, None) == "[NH+] 8 times running"
    assert molecule.degenerate("CC(=O)NO", "c1ccccc1", None) == "all rings of the start are lost"
    assert molecule.degenerate("CC(=O)NO", "CCO", None) is None
    assert molecule.degenerate("C1CC1O", "c1ccccc1", None) is None
    with pytest.raises(InputError):
        molecule.degenerate("c1cc", None, None)


def test_reactions_are_judged_by_their_largest_product():
    reaction = domain_of("reaction")
    text = "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1.Cl"
    assert reaction.degenerate(text, text, None) is None
    assert reaction.degenerate(f"CCBr.CCCCCCCC>>{'C' * 10}.Br", text, None).startswith("100%")
    assert math.isnan(reaction.complexity(text))

"""What the bundled tables say of molecules, as triples: the groups and scaffolds they have, what was measured of them,
and what reactions make and take."""

from collections import Counter
from collections.abc import Iterable

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from isotrace.domains.molecule.atoms import joint_atom_concepts, single_atom_concepts
from isotrace.domains.molecule.vocabulary.concepts import TOKEN_CONCEPTS
from isotrace.domains.molecule.vocabulary.patterns import functional_groups
from isotrace.studies.knowledge.paths import Graph, Triple
from isotrace.studies.study import bundled_table

BARRIER, ENZYME = "blood–brain barrier", "BACE-1"
SHARE = 0.2
"""Of a class' reactions that make or take a group, from which on it is said of the class."""
KINDS = ("element", "charge", "ring", "functional group", "structural alert", "aromaticity")
"""Of concepts: what is said of a molecule, not of a spelling or of an atom's place."""
PER_CLASS = 50


def chemical_graph(n: int, seed: int) -> Graph:
    """Of `n` molecules of each of the tables `bbb` and `bace`, and reactions of every class."""
    said = _molecules("bbb", "bbb", "BBB+", "crosses", BARRIER, n, seed)
    said += _molecules("bace", "Class", "1", "inhibits", ENZYME, n, seed)
    return Graph.of([*said, *_reactions(seed), *_kinds()])


def _molecules(table: str, column: str, yes: str, relation: str, what: str, n: int, seed: int) -> list[Triple]:
    rows = bundled_table(table).sample(fraction=1.0, shuffle=True, seed=seed)
    found: list[Triple] = []
    for smiles, label in rows.select("smiles", column).head(n).iter_rows():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            continue
        name = Chem.MolToSmiles(mol)
        found += [Triple(name, "has", concept, table) for concept in concepts_of(mol)]
        scaffold = Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(mol))
        found += [Triple(name, "has scaffold", f"scaffold {scaffold}", table)] if scaffold else []
        found += [Triple(name, relation, what, table)] if label == yes else []
    return found


def concepts_of(mol: Chem.Mol) -> list[str]:
    """Names of the concepts of KINDS that any atom of it carries."""
    names = {name for of_atom in single_atom_concepts(mol) for name in of_atom}
    names |= {name for name, _ in joint_atom_concepts(mol)}
    return sorted(names & {concept.name for concept in TOKEN_CONCEPTS if concept.group in KINDS})


def _kinds() -> Iterable[Triple]:
    return (Triple(c.name, "is a", c.group, "vocabulary") for c in TOKEN_CONCEPTS if c.group in KINDS)


def _reactions(seed: int) -> list[Triple]:
    """What the products of a class have that its reactants lack, and the other way round."""
    table = bundled_table("reactions").sample(fraction=1.0, shuffle=True, seed=seed)
    found: list[Triple] = []
    for name, rows in table.group_by("rx_class_name", maintain_order=True):
        counts: Counter[tuple[str, str]] = Counter()
        texts = rows["reaction"].head(PER_CLASS).to_list()
        for text in texts:
            before, after = (_groups(side) for side in (text.split(">")[0], text.split(">")[-1]))
            counts.update(("makes", group) for group in after - before)
            counts.update(("takes", group) for group in before - after)
        found += [
            Triple(str(name[0]), relation, group, "reactions")
            for (relation, group), count in counts.items() if count >= SHARE * len(texts)
        ]  # fmt: skip
    return found


def _groups(smiles: str) -> set[str]:
    mol = Chem.MolFromSmiles(smiles)
    return set() if mol is None else {name for name, _ in functional_groups().matches(mol)}

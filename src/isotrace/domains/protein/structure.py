"""Chains of a protein structure file, and which of their residues are which of a sequence.

A file is PDB or PDBx/mmCIF, read by gemmi (the extra `structure`); only the first model counts, and chains and residue
numbers are the authors' (`auth_*`), as viewers show them. Residues that are not resolved are absent from the file, so
a chain is matched to the sequence by an alignment that allows for gaps.
"""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isotrace.base.errors import InputError
from isotrace.base.files import read_text, refuse_workbook

if TYPE_CHECKING:
    import gemmi

FORMATS: dict[str, Literal["pdb", "cif"]] = {".pdb": "pdb", ".ent": "pdb", ".cif": "cif", ".mmcif": "cif"}
LEAST_IDENTITY = 0.9
# Protonation states and bridges, as programs for simulation name them (AMBER, CHARMM, GROMACS).
STATES = {
    "HID": "H", "HIE": "H", "HIP": "H", "HIN": "H", "HSD": "H", "HSE": "H", "HSP": "H", "ASH": "D", "GLH": "E",
    "LYN": "K", "LSN": "K", "LYP": "K", "ARN": "R", "CYX": "C", "CYM": "C", "CYH": "C", "TYM": "Y",
    "AS4": "D", "GL4": "E", "CYT": "C", "TYO": "Y", "SRO": "S", "THO": "T",
    "PCA": "Q",  # made of glutamine, which is its parent in the PDB's dictionary
}  # fmt: skip
_NUMBER = re.compile(r" *-?\d+|[A-Z][0-9A-Z]{3}|[a-z][0-9a-z]{3}")  # of a residue in a PDB file: decimal or hybrid-36


@dataclass(frozen=True)
class StructureResidue:
    """`number` and `insertion` are the authors'; `rows` are its first and last line among the atoms, from 0."""

    number: int
    insertion: str
    letter: str
    rows: tuple[int, int]


@dataclass(frozen=True)
class Chain:
    name: str
    residues: tuple[StructureResidue, ...]

    @property
    def sequence(self) -> str:
        return "".join(residue.letter for residue in self.residues)


@dataclass(frozen=True)
class Structure:
    """A structure file: its `text`, and its chains of amino acids in order."""

    name: str
    format: Literal["pdb", "cif"]
    text: str
    chains: tuple[Chain, ...]


@dataclass(frozen=True)
class Match:
    """`pairs[k]` = (position in `chain.residues`, residue of the sequence, from 0), ascending in both. `identical`
    of the pairs carry the same letter; the others are substitutions."""

    chain: Chain
    pairs: tuple[tuple[int, int], ...]
    identical: int


def read_structure(path: Path) -> Structure:
    """Reads `.pdb`, `.ent`, `.cif` or `.mmcif`, each also as `.gz`.

    Raises InputError for another suffix, a file that cannot be read, one without amino acids, or without gemmi.
    """
    name = path.name.removesuffix(".gz")
    refuse_workbook(path)
    if (kind := FORMATS.get(Path(name).suffix.lower())) is None:
        raise InputError(f"{path} is no structure file: give {', '.join(FORMATS)}, each also gzipped.")
    text = read_text(path)
    try:
        chains = _chains(_pdb(text) if kind == "pdb" else _cif(text))
    except (ValueError, RuntimeError) as error:  # gemmi's errors are both
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}.") from None
    if not chains:
        raise InputError(f"{path} holds no amino acids in its first model: give the structure of a protein.")
    return Structure(path.name, kind, text, chains)


def match_chains(structure: Structure, sequence: str) -> list[Match]:
    """Every chain of which at least 90 % of the shorter, chain or sequence, are identical to the other.

    Raises InputError, with the best identity found, if there is none."""
    found = [_align(chain, sequence) for chain in structure.chains]
    share = [m.identical / min(len(m.chain.residues), len(sequence)) for m in found]
    if max(share) < LEAST_IDENTITY:
        best = found[share.index(max(share))].chain.name
        raise InputError(
            f"no chain of {structure.name} matches the sequence: the closest, {best}, agrees in {max(share):.0%} of "
            f"residues, and {LEAST_IDENTITY:.0%} are needed; give the structure of this sequence."
        )
    return [match for match, part in zip(found, share, strict=True) if part >= LEAST_IDENTITY]


def _align(chain: Chain, sequence: str) -> Match:
    letters = chain.sequence
    place: list[int | None] = [None] * len(letters)
    matcher = SequenceMatcher(None, letters, sequence, autojunk=False)
    for tag, a, a_end, b, b_end in matcher.get_opcodes():
        # A stretch replaced by one as long is a run of substitutions.
        if tag == "equal" or (tag == "replace" and a_end - a == b_end - b):
            place[a:a_end] = range(b, b_end)
    _move_gaps(chain, sequence, place)
    pairs = tuple((i, j) for i, j in enumerate(place) if j is not None)
    return Match(chain, pairs, sum(letters[i] == sequence[j] for i, j in pairs))


def _move_gaps(chain: Chain, sequence: str, place: list[int | None]) -> None:
    """Slides gaps that could lie elsewhere as well (`A` missing from `AA`) to where the authors' numbers jump."""
    letters, numbers = chain.sequence, [residue.number for residue in chain.residues]

    def is_jump(i: int) -> bool:
        return not 0 <= numbers[i] - numbers[i - 1] <= 1

    for i in range(1, len(place)):
        before, after = place[i - 1], place[i]
        if before is None or after is None or after - before == 1 or is_jump(i):
            continue
        for step in (-1, 1):
            moved: dict[int, int] = {}
            gap = i
            while not is_jump(gap):
                # The residue on one side of the gap goes to the other side, if the letter there is the same.
                edge, target = (gap - 1, after - i + gap - 1) if step < 0 else (gap, before - i + gap + 1)
                if place[edge] is None or letters[edge] != sequence[target]:
                    break
                moved[edge] = target
                gap += step
                if not 0 < gap < len(place):
                    break
            else:
                for edge, target in moved.items():
                    place[edge] = target
                break


def _chains(structure: "gemmi.Structure") -> tuple[Chain, ...]:
    """Of the first model; the x of every atom is its row, see `_pdb` and `_cif`."""
    structure.merge_chain_parts()
    chains = []
    for chain in structure[0] if len(structure) else ():
        spans: dict[tuple[int, str], list[gemmi.Residue]] = {}
        for residue in chain:
            number = residue.seqid.num
            if number is not None and _letter(residue):
                spans.setdefault((number, residue.seqid.icode.strip()), []).append(residue)
        residues = []
        for (number, insertion), members in spans.items():
            atoms = [atom for member in members for atom in member]
            if any(atom.name == "CA" for atom in atoms):
                rows = [int(atom.pos.x) for atom in atoms]
                letter = _letter(members[0])
                residues.append(StructureResidue(number, insertion, letter, (min(rows), max(rows))))
        if residues:
            chains.append(Chain(chain.name, tuple(residues)))
    return tuple(chains)


def _letter(residue: "gemmi.Residue") -> str:
    """Empty for what is no amino acid; a modified one has the letter of its parent, as its sequence is deposited."""
    homoserine = residue.name == "HSE" and any(atom.name == "OD" for atom in residue)
    if residue.name in STATES and not homoserine:
        return STATES[residue.name]
    found = _gemmi().find_tabulated_residue(residue.name)
    return found.one_letter_code.strip().upper() if found.is_amino_acid() else ""


# What reads these files keeps no row numbers, and nothing here reads coordinates: a row travels as the x of its atom.
def _pdb(text: str) -> "gemmi.Structure":
    lines = []
    for n, line in enumerate(text.splitlines(), 1):
        if line.startswith("ENDMDL"):
            break
        if line.startswith(("ATOM  ", "HETATM")):
            if not _NUMBER.fullmatch(line[22:26]):
                raise ValueError(f"{line[22:26]!r} is no residue number (line {n})")
            if len(line) < 54:
                raise ValueError(f"line {n} ends before its coordinates")
            lines.append(f"{line[:30]}{len(lines):8d}{line[38:]}\n")
    return _gemmi().read_pdb_string("".join(lines))


def _cif(text: str) -> "gemmi.Structure":
    for block in _gemmi().cif.read_string(text):
        column = block.find_values("_atom_site.Cartn_x")
        for row in range(len(column)):
            column[row] = str(row)
        if len(column):
            return _gemmi().make_structure_from_block(block)
    raise ValueError("it has no _atom_site table with coordinates")


def _gemmi():
    try:
        import gemmi
    except ImportError:
        raise InputError("gemmi is not installed: pip install 'isotrace[structure]' to read structure files.") from None
    return gemmi

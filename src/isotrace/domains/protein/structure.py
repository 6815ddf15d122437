"""Chains of a protein structure file, and which of their residues are which of a sequence.

A file is PDB (format 3.3) or PDBx/mmCIF; only the first model counts, and chains and residue numbers are the authors'
(`auth_*`), as viewers show them. Residues that are not resolved are absent from the file, so a chain is matched to
the sequence by an alignment that allows for gaps.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from isotrace.base.compressed import unzipped
from isotrace.base.errors import InputError

FORMATS: dict[str, Literal["pdb", "cif"]] = {".pdb": "pdb", ".ent": "pdb", ".cif": "cif", ".mmcif": "cif"}
LEAST_IDENTITY = 0.9
_LETTER = {
    "ALA": "A",
    "ARG": "R",
    "ASN": "N",
    "ASP": "D",
    "CYS": "C",
    "GLN": "Q",
    "GLU": "E",
    "GLY": "G",
    "HIS": "H",
    "ILE": "I",
    "LEU": "L",
    "LYS": "K",
    "MET": "M",
    "PHE": "F",
    "PRO": "P",
    "SER": "S",
    "THR": "T",
    "TRP": "W",
    "TYR": "Y",
    "VAL": "V",
    "SEC": "U",
    "PYL": "O",
    "ASX": "B",
    "GLX": "Z",
    "UNK": "X",
    # Modified residues under the letter of their parent, which is how their sequence is deposited.
    "MSE": "M",
    "SEP": "S",
    "TPO": "T",
    "PTR": "Y",
    "CSO": "C",
    "CME": "C",
    "PCA": "Q",
    "HYP": "P",
    "MLY": "K",
    "KCX": "K",
    "LLP": "K",
    "CSD": "C",
    "OCS": "C",
    "HIC": "H",
    "M3L": "K",
}
_VALUE = re.compile(r"""'((?:[^']|'(?=\S))*)'(?=\s|$)|"((?:[^"]|"(?=\S))*)"(?=\s|$)|(\S+)""")


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


@dataclass(frozen=True)
class _Atom:
    row: int
    chain: str
    number: int
    insertion: str
    component: str
    is_alpha_carbon: bool


def read_structure(path: Path) -> Structure:
    """Reads `.pdb`, `.ent`, `.cif` or `.mmcif`, each also as `.gz`.

    Raises InputError for another suffix, a file that cannot be read, or one without amino acids.
    """
    name = path.name.removesuffix(".gz")
    if (kind := FORMATS.get(Path(name).suffix.lower())) is None:
        raise InputError(f"{path} is no structure file: give {', '.join(FORMATS)}, each also gzipped.")
    try:
        raw = path.read_bytes()
        text = (unzipped(raw, str(path)) if path.name.endswith(".gz") else raw).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    try:
        chains = _chains(_pdb_atoms(text) if kind == "pdb" else _cif_atoms(text))
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}.") from None
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


def _chains(atoms: Iterator[_Atom]) -> tuple[Chain, ...]:
    spans: dict[tuple[str, int, str], list[_Atom]] = {}
    for atom in atoms:
        if atom.component in _LETTER:
            spans.setdefault((atom.chain, atom.number, atom.insertion), []).append(atom)
    chains: dict[str, list[StructureResidue]] = {}
    for (chain, number, insertion), members in spans.items():
        if any(atom.is_alpha_carbon for atom in members):
            rows = (members[0].row, members[-1].row)
            residue = StructureResidue(number, insertion, _LETTER[members[0].component], rows)
            chains.setdefault(chain, []).append(residue)
    return tuple(Chain(name, tuple(residues)) for name, residues in chains.items())


def _pdb_atoms(text: str) -> Iterator[_Atom]:
    row = 0
    for line in text.splitlines():
        if line.startswith("ENDMDL"):
            return
        if line.startswith(("ATOM  ", "HETATM")):
            alpha = line[12:16] == " CA "
            yield _Atom(row, line[21], int(line[22:26]), line[26].strip(), line[17:20].strip(), alpha)
            row += 1


def _cif_atoms(text: str) -> Iterator[_Atom]:
    columns: list[str] = []
    values: list[str] = []
    for line in text.splitlines():
        if line.startswith("_atom_site."):
            columns.append(line.split()[0].removeprefix("_atom_site.").lower())
        elif columns:
            if line.startswith(("#", "_", "loop_", "data_")):
                break
            values.extend(next(filter(None, found), "") for found in _VALUE.findall(line))
    if not columns:
        raise ValueError("it has no _atom_site table")
    if len(values) % len(columns):
        raise ValueError(f"its _atom_site table has {len(columns)} columns but {len(values)} values")

    def column(*names: str) -> list[str]:
        name = next((n for n in names if n in columns), None)
        if name is None:
            raise ValueError(f"its _atom_site table lacks {names[-1]}")
        return values[columns.index(name) :: len(columns)]

    chain = column("auth_asym_id", "label_asym_id")
    number = column("auth_seq_id", "label_seq_id")
    component = column("auth_comp_id", "label_comp_id")
    atom = column("auth_atom_id", "label_atom_id")
    model = column("pdbx_pdb_model_num") if "pdbx_pdb_model_num" in columns else [""] * len(chain)
    insertion = column("pdbx_pdb_ins_code") if "pdbx_pdb_ins_code" in columns else ["?"] * len(chain)
    for row in range(len(chain)):
        if model[row] == model[0] and component[row] in _LETTER:
            code = "" if insertion[row] in "?." else insertion[row]
            yield _Atom(row, chain[row], int(number[row]), code, component[row], atom[row] == "CA")

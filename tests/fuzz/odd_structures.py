"""PDB and mmCIF files: residues of every name, gaps, insertions, alternatives, several chains and models."""

import gzip
from random import Random

from odd import Case, damaged, text

LETTERS = {
    "ALA": "A", "GLY": "G", "LYS": "K", "MSE": "M", "HIE": "H", "HID": "H", "HSP": "H", "CYX": "C", "CYM": "C",
    "ASH": "D", "GLH": "E",
    "LYN": "K", "ARN": "R", "SEC": "U", "PCA": "Q", "SEP": "S", "UNK": "X", "HOH": "", "ATP": "", "DA": "", "ZN": "",
    "???": "",
}  # fmt: skip


def structure(rng: Random) -> Case:
    """`right[0]`: the sequence of the first chain that has amino acids."""
    atoms, sequences = [], []
    for chain in rng.sample("ABCx1", rng.randrange(1, 3)):
        number, letters = rng.randrange(-3, 20), ""
        for _ in range(rng.randrange(1, 9)):
            name = rng.choice([*LETTERS])
            number += rng.choice([1, 1, 1, 2, 9])
            resolved = rng.random() < 0.9
            for atom in ("N", "CA", "C") if resolved else ("N",):
                atoms.append((name, chain, number, atom))
            letters += LETTERS[name] if resolved else ""
        sequences.append(letters)
    pdb = rng.random() < 0.6
    content = _pdb(atoms, rng) if pdb else _cif(atoms)
    sequence = next((x for x in sequences if x), "")
    name = rng.choice(["a.pdb", "a.ent"]) if pdb else rng.choice(["a.cif", "a.mmcif"])
    if rng.random() < 0.4:
        return Case(name, damaged(content, rng), None)
    if rng.random() < 0.2:
        name, content = f"{name}.gz", gzip.compress(content)
    return Case(name, content, None, {0: (sequence, {})})


def _pdb(atoms, rng: Random) -> bytes:
    lines = [f"REMARK   1 {text(rng).translate({10: ' ', 13: ' '})}" if rng.random() < 0.3 else "HEADER    X"]
    for i, (name, chain, number, atom) in enumerate(atoms, 1):
        kind = "HETATM" if name in ("MSE", "HOH", "ZN", "ATP", "SEP", "PCA") else "ATOM  "
        where = f"{i:8.3f}{0:8.3f}{0:8.3f}{1:6.2f}{0:6.2f}"
        lines.append(f"{kind}{i:5d}  {atom:<3s} {name:>3s} {chain}{number:4d}    {where}          {atom[0]:>2s}")
    ends = rng.choice([["END"], [], ["TER", "END"], ["ENDMDL", "MODEL        2", *lines[1:3], "ENDMDL"]])
    return rng.choice(["\n", "\r\n"]).join([*lines, *ends, ""]).encode("utf-8", "replace")


def _cif(atoms) -> bytes:
    tags = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
    )
    tags += (
        "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
    )
    rows = "\n".join(
        f"ATOM {i} {atom[0]} {atom} . '{name}' {chain} 1 {number} ? {i} 0 0 1 0 {number} {chain} 1"
        for i, (name, chain, number, atom) in enumerate(atoms, 1)
    )
    return f"data_x\nloop_\n{chr(10).join(f'_atom_site.{tag}' for tag in tags.split())}\n{rows}\n".encode()

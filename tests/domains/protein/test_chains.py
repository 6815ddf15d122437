"""Structure files: chains read from PDB and mmCIF, and matched to sequences with gaps and substitutions."""

import gzip
import re
import sys
from pathlib import Path
from string import ascii_uppercase

import pytest

from isotrace.base.errors import InputError
from isotrace.domains.protein.structure import match_chains, read_structure

DATA = Path(__file__).parents[2] / "data"
GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
FILES = ["1pga.pdb", "1pga.cif"]


@pytest.fixture
def altered(tmp_path):
    """Writes the PDB file with each line changed, or left out for None."""

    def write(change, name="altered.pdb"):
        lines = [new for line in (DATA / "1pga.pdb").read_text().splitlines() if (new := change(line)) is not None]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write


def is_atom(line: str) -> bool:
    return line.startswith(("ATOM", "HETATM"))


@pytest.mark.parametrize("name", FILES)
def test_both_formats_give_the_chain(name):
    structure = read_structure(DATA / name)
    (chain,) = structure.chains
    assert (chain.name, chain.sequence) == ("A", GB1)  # the waters of chain A are no residues
    assert [r.number for r in chain.residues] == list(range(1, 57))
    assert chain.residues[0].rows == (0, 7)  # methionine has eight heavy atoms
    assert chain.residues[-1].rows[1] == 435
    (match,) = match_chains(structure, GB1)
    assert match.pairs == tuple((i, i) for i in range(56))
    assert match.identical == 56


def test_gzip_reads_the_same(tmp_path):
    packed = tmp_path / "1pga.ent.gz"
    packed.write_bytes(gzip.compress((DATA / "1pga.pdb").read_bytes()))
    assert read_structure(packed).chains == read_structure(DATA / "1pga.pdb").chains


def test_unresolved_residues_and_a_longer_sequence(altered):
    file = altered(lambda line: None if is_atom(line) and 20 <= int(line[22:26]) <= 27 else line)
    (match,) = match_chains(read_structure(file), "GSHM" + GB1 + "LEHHHHHH")
    kept = [i for i in range(56) if not 19 <= i <= 26]
    assert [j for _, j in match.pairs] == [i + 4 for i in kept]
    assert [i for i, _ in match.pairs] == list(range(48))
    assert match.identical == 48


def test_a_part_of_the_chain_and_a_substitution():
    structure = read_structure(DATA / "1pga.pdb")
    (match,) = match_chains(structure, GB1[9:40])
    assert match.pairs == tuple((i + 9, i) for i in range(31))
    (match,) = match_chains(structure, GB1.replace("MTYK", "MQYK"))
    assert len(match.pairs) == 56
    assert match.identical == 55


def test_insertion_letters_models_and_modified_residues(altered):
    def change(line):
        if line.startswith("TER") or (line.startswith("HETATM") and "HOH" in line):
            return None
        if is_atom(line) and line[22:26] == "   3":
            return line[:22] + "   2A" + line[27:]
        if is_atom(line) and line[17:20] == "MET":
            return "HETATM" + line[6:17] + "MSE" + line[20:]
        return line

    file = altered(change)
    once = file.read_text()
    file.write_text("MODEL        1\n" + once + "ENDMDL\nMODEL        2\n" + once + "ENDMDL\n")
    (chain,) = read_structure(file).chains
    assert chain.sequence == GB1
    assert [(r.number, r.insertion) for r in chain.residues[:4]] == [(1, ""), (2, ""), (2, "A"), (4, "")]


def test_every_copy_of_a_chain_matches(altered):
    file = altered(lambda line: line)
    copy = [line[:21] + "B" + line[22:] for line in file.read_text().splitlines() if is_atom(line)]
    file.write_text(file.read_text() + "\n".join(copy) + "\n")
    assert [m.chain.name for m in match_chains(read_structure(file), GB1)] == ["A", "B"]


def test_quoted_values_and_rows_over_several_lines(tmp_path):
    text = (DATA / "1pga.cif").read_text()
    text = text.replace(" CA ", ' "CA"\n').replace(" MET ", " 'MET' ")
    (tmp_path / "odd.cif").write_text(text)
    assert read_structure(tmp_path / "odd.cif").chains == read_structure(DATA / "1pga.cif").chains


def test_tags_of_any_case_and_values_on_lines_of_their_own(tmp_path):
    """Both are legal CIF."""
    text, expected = (DATA / "1pga.cif").read_text(), read_structure(DATA / "1pga.cif").chains
    (tmp_path / "tags.cif").write_text(re.sub(r"_atom_site\.\w+", lambda tag: tag[0].upper(), text))
    (tmp_path / "text.cif").write_text(re.sub(r"^(ATOM +\d+ \w) CA ", "\\1\n;CA\n; ", text, flags=re.MULTILINE))
    assert "\n;CA\n;" in (tmp_path / "text.cif").read_text()
    assert read_structure(tmp_path / "tags.cif").chains == read_structure(tmp_path / "text.cif").chains == expected


def test_names_at_the_left_of_their_field(altered):
    file = altered(lambda line: line.replace("  CA  ", " CA   ") if is_atom(line) else line)
    assert " CA   MET A   1" in file.read_text()
    assert read_structure(file).chains == read_structure(DATA / "1pga.pdb").chains


def test_numbers_beyond_four_digits(altered):
    """Hybrid-36: behind 9999 comes A000, and behind A009 A00A."""

    def change(line):
        number = int(line[22:26]) + 9970 if line.startswith("ATOM") else 0  # the waters keep theirs
        later = f"A00{ascii_uppercase[number - 10010]}" if number > 10009 else f"{number:4d}".replace("1000", "A00")
        return line[:22] + later + line[26:] if number else line

    (chain,) = read_structure(altered(change)).chains
    assert chain.sequence == GB1
    assert [r.number for r in chain.residues] == list(range(9971, 10027))
    assert match_chains(read_structure(altered(change)), GB1)[0].identical == 56


def test_other_forms_of_one_residue_are_one(altered):
    """A residue refined as two amino acids, the second at the end of the file; a calcium ion is no residue."""
    file = altered(lambda line: line)
    calcium = "HETATM  900 CA    CA A 201      10.000  10.000  10.000  1.00 20.00          CA\n"
    other = "ATOM    901  CA  SER A   2      10.000  10.000  10.000  0.40 20.00           C\n"
    file.write_text(file.read_text() + calcium + other)
    (chain,) = read_structure(file).chains
    assert chain.sequence == GB1
    (before,) = read_structure(DATA / "1pga.pdb").chains
    assert chain.residues[1].rows[0] == before.residues[1].rows[0]
    atoms = [line for line in file.read_text().splitlines() if is_atom(line)]
    assert atoms[chain.residues[1].rows[1]] == other.strip()
    assert (chain.residues[:1], chain.residues[2:]) == (before.residues[:1], before.residues[2:])


def test_without_gemmi_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemmi", None)
    with pytest.raises(InputError, match=re.escape("pip install 'isotrace[structure]'")):
        read_structure(DATA / "1pga.pdb")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "is no structure file"),
        ("a.pdb", "HEADER\n", "holds no amino acids"),
        ("a.cif", "data_x\n", "it has no _atom_site table"),
        ("a.cif", "data_x\nloop_\n_atom_site.id\n_atom_site.x\n1 2\n3\n#\n", "is damaged: "),
        ("a.cif", "data_x\nloop_\n_atom_site.id\n1\n#\n", "it has no _atom_site table with coordinates"),
        ("a.cif", "loop_\n_atom_site.id\n1\n#\n", "is damaged: "),
        ("a.cif", "data_x\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1 2.0\n#\n", "holds no amino acids"),
        ("a.pdb", "ATOM      1  CA  MET A  xx      26.6\n", "is damaged: '  xx' is no residue number"),
        ("a.pdb", "ATOM      1  CA  MET A   1      26.6\n", "is damaged: "),
        ("a.pdb.gz", "not gzipped", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read_structure(tmp_path / name)


def test_another_protein_is_refused_with_its_identity(tmp_path):
    with pytest.raises(InputError, match=r"no chain of 1pga.pdb matches.*the closest, A, agrees in \d+%"):
        match_chains(read_structure(DATA / "1pga.pdb"), "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYN")
    with pytest.raises(InputError, match="does not exist"):
        read_structure(tmp_path / "missing.pdb")

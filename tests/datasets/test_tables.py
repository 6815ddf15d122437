"""Tables as spreadsheets, R, pandas and people write them: separators, quotation marks, encodings, kinds of cells."""

import datetime
import decimal
import gzip
import pathlib
import uuid

import numpy as np
import polars as pl
import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.datasets.concept_files import read_concept_file
from isotrace.datasets.inputs import read_inputs
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.domains.protein.structure import read_structure
from isotrace.verbs.loading import named


def write(folder, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


QUOTES = '{0}\tsmiles\tic50\n5-methyl\tCCO\t1\n"2-prime isomer\tCCN\t2\nplain\tCCC\t3\nthe 3 cut"\tCCCl\t4\n'


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_quotation_marks_are_characters_between_tabs(tmp_path, newline):
    rows, rejects = read_inputs(write(tmp_path, "a.tsv", QUOTES.format("name").replace("\n", newline)))
    assert rejects.is_empty()
    assert rows["name"].to_list() == ["5-methyl", '"2-prime isomer', "plain", 'the 3 cut"']
    assert rows["ic50"].to_list() == [1, 2, 3, 4]
    patterns = "name\tgroup\tkind\tpattern\n" + "".join(
        f"{mark}{i}\tg\tsmarts\t{'C' * i}\n" for i, mark in enumerate("'\"'\"", 1)
    )
    assert len(read_concept_file(write(tmp_path, "c.tsv", patterns), MOLECULE).concepts) == 4


def test_a_table_of_R_quotes_its_header_and_so_every_cell(tmp_path):
    rows, _ = read_inputs(write(tmp_path, "a.tsv", '"name"\t"smiles"\n"tab\there"\t"CCO"\n"plain"\t"CCN"\n'))
    assert rows.select("name", "sequence").rows() == [("tab\there", "CCO"), ("plain", "CCN")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "smiles;logs\nCCO;0,5\nCCN;-1,2\n"),
        ("a.csv", "smiles\tlogs\nCCO\t0,5\nCCN\t-1,2\n"),
        ("a.csv", "smiles|logs\nCCO|0,5\nCCN|-1,2\n"),
        ("a.csv", 'sep=;\r\n"smiles";"logs"\r\nCCO;0,5\r\nCCN;-1,2\r\n'),
        ("a.tsv", 'smiles,logs\nCCO,"0,5"\nCCN,"-1,2"\n'),
        ("a.csv.gz", None),
    ],
)
def test_another_separator_is_taken_where_the_header_says_so(tmp_path, name, content):
    content = content or gzip.compress(b"smiles;logs\nCCO;0,5\nCCN;-1,2\n")
    rows, rejects = read_inputs(write(tmp_path, name, content))
    assert rejects.is_empty()
    assert rows.select("sequence", "logs").rows() == [("CCO", "0,5"), ("CCN", "-1,2")]


def test_another_separator_that_leaves_the_column_open_is_named(tmp_path):
    path = write(tmp_path, "a.csv", "mol;logs\nCCO;1\n")
    with pytest.raises(
        InputError, match=r"\(separated by semicolons\) has no column .* give --column one of mol, logs"
    ):
        read_inputs(path)
    assert read_inputs(path, column="mol")[0]["sequence"].to_list() == ["CCO"]
    for head, marks in (
        ("id;smiles,logs", "commas and semicolons"),
        ("id;smiles|logs", "semicolons and vertical bars"),
    ):
        with pytest.raises(InputError, match=f"is separated by {marks}: save it with one separator"):
            read_inputs(write(tmp_path, "b.csv", f"{head}\n1;CCO,1\n"))
    with pytest.raises(InputError, match=r"give --column one of mol, logS \(g;l\)"):
        read_inputs(write(tmp_path, "b.csv", "mol,logS (g;l)\nCCO,1\n"))
    with pytest.raises(InputError, match="seems to be separated by blanks"):
        read_inputs(write(tmp_path, "b.csv", "smiles logs\nCCO 1\n"))
    with pytest.raises(InputError, match="line 1 must be name,group,kind,pattern"):
        read_concept_file(write(tmp_path, "c.csv", "name;group;pattern\na;b;C\n"), MOLECULE)
    semicolons = write(tmp_path, "d.csv", "name;group;kind;pattern\na;b;smarts;[C,N]\n")
    assert [concept.name for concept in read_concept_file(semicolons, MOLECULE).concepts] == ["a"]


@pytest.mark.parametrize("head", ["id,smiles", "id;SMILES", "smiles,logs", "id\tsmiles"])
def test_a_table_that_calls_itself_a_list_is_refused(tmp_path, head):
    with pytest.raises(InputError, match="is a table: rename it"):
        read_inputs(write(tmp_path, "a.txt", f"{head}\n1,CCO\n"))


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.smi", "a.fasta"])
def test_a_mark_says_how_text_is_written(tmp_path, coding, name):
    text = {"a.csv": "smiles,name\nCCO,größe\n", "a.tsv": "smiles\tname\nCCO\tgröße\n", "a.smi": "CCO größe\n"}
    rows, _ = read_inputs(write(tmp_path, name, text.get(name, ">größe\nCCO\n").encode(coding)))
    assert rows.select("name", "sequence").row(0) == ("größe", "CCO")


@pytest.mark.parametrize("coding", ["latin-1", "cp1252"])
def test_other_encodings_reject_the_rows_they_touch(tmp_path, coding):
    content = "smiles,name\nCCO,größe\nCCN,plain\n"
    rows, rejects = read_inputs(write(tmp_path, "a.csv", content.encode(coding)))
    assert rows["name"].to_list() == ["plain"]
    assert rejects.rows() == [(0, "CCO,gr\\xf6\\xdfe", "the row is not UTF-8")]
    with pytest.raises(InputError, match=r"is not UTF-8 \(line 3\): save it as UTF-8"):
        read_concept_file(write(tmp_path, "c.csv", f"name,group,kind,pattern\n{content}".encode(coding)), MOLECULE)


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.smi", "a.fasta", "a.sdf"])
def test_utf_16_without_a_mark_is_named(tmp_path, coding, name):
    with pytest.raises(InputError, match="is not UTF-8 but seems to be UTF-16 without a mark: save it as UTF-8"):
        read_inputs(write(tmp_path, name, "smiles,logs\nCCO,0.5\n".encode(coding)))


@pytest.mark.parametrize("name", ["a.xlsx", "a.XLS", "a.ods", "a.xlsm"])
def test_a_workbook_is_to_be_exported(tmp_path, name):
    path = write(tmp_path, name, b"PK\x03\x04\x14\0")
    for source in (path, str(path), str(tmp_path / f"missing-{name}")):
        with pytest.raises(InputError, match="is a workbook: export the sheet as CSV"):
            read_inputs(source)
    with pytest.raises(InputError, match="is a workbook: export the sheet as CSV"):
        read_concept_file(path, MOLECULE)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04\x14\0", "export its sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1", "export its sheet as CSV"),
        (b"\x1f\x8b\x08\0", r"rename it to end in \.gz"),
        (b"PAR1\0", r"rename it to end in \.parquet"),
    ],
)
def test_what_is_no_text_is_told_by_its_first_bytes(tmp_path, content, says):
    for name, read in (("a.csv", read_inputs), ("c.tsv", lambda path: read_concept_file(path, MOLECULE))):
        with pytest.raises(InputError, match=says):
            read(write(tmp_path, name, content))


def test_damaged_gzip_is_one_line_wherever_files_are_read(tmp_path):
    whole = gzip.compress(b"smiles,name\nCCO,a\n" * 50, mtime=0)
    for cut in (3, 11, len(whole) // 2, len(whole) - 3):
        for damaged in (whole[:cut], whole[:cut] + b"\xff\xff\xff\xff" + whole[cut + 4 :]):
            for name, read in (
                ("a.csv.gz", read_inputs),
                ("c.csv.gz", lambda path: read_concept_file(path, MOLECULE)),
                ("s.pdb.gz", read_structure),
            ):
                with pytest.raises(InputError, match="cannot be read"):
                    read(write(tmp_path, name, damaged))


OBJECTS = {
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "path": (pathlib.PurePosixPath("a/b"), "a/b"),
    "date": (datetime.date(2024, 1, 2), "2024-01-02"),
    "numpy": (np.int64(7), "7"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "long": (2**80, str(2**80)),
    "bytes": (b"x\xff", "x\\xff"),
    "complex": (1 + 2j, "(1+2j)"),
    "seconds": (datetime.timedelta(seconds=1), "0:00:01"),
    "list": ([1, 2], "[1, 2]"),
    "undecoded": ("x\udcff", "x\\xff"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_identifiers_of_any_kind_are_their_text(kind):
    cell, text = OBJECTS[kind]
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency: only its users have it")
    cells = {"smiles": ["CCO", "CCN"], "id": [cell, cell], "other": [cell, None]}
    frames = [pandas.DataFrame({name: pandas.Series(column, dtype=object) for name, column in cells.items()})]
    if kind not in ("long", "numpy"):
        frames.append(
            pl.DataFrame(
                [pl.Series(name, column, pl.Object if name != "smiles" else None) for name, column in cells.items()]
            )
        )
    for frame in frames:
        rows, rejects = read_inputs(frame)
        assert rejects.is_empty()
        assert rows["name"].to_list() == [text, text]
        assert rows["other"][1] is None
        assert named(frame).startswith("2 sequences, sha256 ")  # what a manifest says of them


def test_molecules_in_a_table_are_read_as_in_a_list():
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency: only its users have it")
    mols = [Chem.MolFromSmiles("OCC"), None]
    rows, rejects = read_inputs(pandas.DataFrame({"ROMol": mols, "y": [1, "x"]}), column="ROMol")
    assert rows.rows() == [(0, None, "CCO", [2, 1, 0], "1")]
    assert rejects["index"].to_list() == [1]
    rows, _ = read_inputs(pandas.DataFrame({"ROMol": mols, "smiles": ["CCO", "CCN"]}))
    assert rows["ROMol"].to_list() == ["CCO", None]
    with pytest.raises(InputError, match="column 'smiles' of the table holds UUID, not text"):
        read_inputs(pandas.DataFrame({"smiles": [uuid.UUID(int=1)]}))

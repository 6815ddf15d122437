import gzip
import io
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from isotrace.base import files
from isotrace.base.errors import InputError
from isotrace.datasets.inputs import FORMATS, read_inputs
from isotrace.datasets.reading.cells import is_missing

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
# Text as it stands in cells: no control characters, no lone surrogates, not blank at the ends.
CELL = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12).filter(
    lambda x: not is_missing(x)
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sequences(source, **options) -> list[str]:
    rows, rejects = read_inputs(source, **options)
    assert rejects.is_empty(), rejects
    assert rows["index"].to_list() == list(range(rows.height))
    return rows["sequence"].to_list()


def sdf_record(mol: Chem.Mol, **fields: str) -> str:
    return Chem.MolToMolBlock(mol) + "".join(f">  <{key}>\n{value}\n\n" for key, value in fields.items()) + "$$$$\n"


@pytest.mark.parametrize("smiles", [ASPIRIN, "C/C=C/C", "[13CH4]", "CCO.Cl>>CCCl", "N", "C" * 5000])
def test_text_is_one_sequence(smiles):
    rows, rejects = read_inputs(smiles)
    assert rows.rows() == [(0, None, smiles)]
    assert rejects.is_empty()
    assert rejects.columns == ["index", "input", "reason"]


def test_sources_in_memory_agree():
    expected = ["CCO", "c1ccccc1"]
    frame = pl.DataFrame({"SMILES": expected})
    for source in (expected, tuple(expected), frame["SMILES"], frame, [Chem.MolFromSmiles(s) for s in expected]):
        assert sequences(source) == expected


def test_pandas_agrees():
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency: only its users have it")
    frame = pandas.DataFrame({"Smiles": ["CCO", None, "N"], "y": [1.5, 2.5, None]})
    rows, rejects = read_inputs(frame)
    assert rows.select("index", "sequence", "y").rows() == [(0, "CCO", 1.5), (2, "N", None)]
    assert rejects["index"].to_list() == [1]
    assert read_inputs(frame["Smiles"])[0]["sequence"].to_list() == ["CCO", "N"]
    text = frame.astype({"Smiles": "string"})["Smiles"]  # its empty cell is pandas.NA
    assert read_inputs(text)[1]["reason"].to_list() == ["the sequence is empty"]


def test_a_molecule_brings_its_name():
    mol = Chem.MolFromSmiles("OCC")
    mol.SetProp("_Name", "ethanol")
    assert read_inputs(mol)[0].rows() == [(0, "ethanol", "CCO", [2, 1, 0])]


def test_cells_that_hold_no_text_are_rejected_in_order():
    rows, rejects = read_inputs(["C", None, 3, "  ", " N ", float("nan")])
    assert rows.select("index", "sequence").rows() == [(0, "C"), (4, "N")]
    assert rejects.rows() == [
        (1, "", "the sequence is empty"),
        (2, "3", "int, not text"),
        (3, "", "the sequence is empty"),
        (5, "nan", "float, not text"),
    ]


@given(st.lists(st.tuples(CELL, CELL, st.integers(-(2**62), 2**62)), min_size=1, max_size=8))
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "parquet"])
def test_tables_round_trip(suffix, tmp_path_factory, records):
    path = tmp_path_factory.mktemp("tables") / f"t.{suffix}"
    table = pl.DataFrame(records, schema={"Name": pl.String, "sMiles": pl.String, "target": pl.Int64}, orient="row")
    buffer = io.BytesIO()
    if suffix == "parquet":
        table.write_parquet(buffer)
    else:
        table.write_csv(buffer, separator="\t" if suffix == "tsv" else ",", quote_style="always")
    path.write_bytes(gzip.compress(buffer.getvalue()) if suffix.endswith("gz") else buffer.getvalue())
    rows, rejects = read_inputs(path)
    assert rejects.is_empty()
    assert rows.rows() == [(i, name, smiles, target) for i, (name, smiles, target) in enumerate(records)]
    assert rows.columns == ["index", "name", "sequence", "target"]


def test_bad_csv_rows_are_rejected_and_the_rest_is_read(tmp_path):
    content = b'smiles,y\nCC,1\n\nCO,2,3\n,4\nC\xff,5\n"CN"x,6\nCF,7\n\n\n'
    rows, rejects = read_inputs(write(tmp_path, "a.csv", content))
    assert rows.select("index", "sequence", "y").rows() == [(0, "CC", 1), (6, "CF", 7)]
    assert rejects["index"].to_list() == [1, 2, 3, 4, 5]
    empty, ragged, blank, encoding, quote = rejects["reason"]
    assert empty == blank == "the sequence is empty"
    assert ragged == "3 fields instead of 2"
    assert encoding == "the row is not UTF-8"
    assert quote.startswith("lines 7 to 7 cannot be read")
    assert rejects["input"][3] == "C\\xff,5"


def test_an_open_quotation_mark_names_the_lines_it_swallows(tmp_path):
    rows, rejects = read_inputs(write(tmp_path, "a.csv", 'smiles\nCC\n"CO\nCN\nCF\n'))
    assert rows["sequence"].to_list() == ["CC"]
    assert rejects["reason"].to_list() == ["lines 3 to 5 cannot be read: unexpected end of data"]


def test_columns_that_are_called_like_ours_are_kept(tmp_path):
    path = write(tmp_path, "a.csv", "index,smiles,ID,sequence,,input_index\n9,CC,x7,MKV,1.5,b\n")
    rows, _ = read_inputs(path, column="smiles")
    assert rows.row(0, named=True) == {
        "index": 0, "name": "x7", "sequence": "CC",
        "input_input_index": 9, "input_sequence": "MKV", "column_4": 1.5, "input_index": "b",
    }  # fmt: skip
    assert read_inputs(path, column="sequence")[0]["sequence"].to_list() == ["MKV"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.smi", "\ufeff \n", "is empty"),
        ("a.parquet", "", "is empty"),
        ("a.csv", "smiles,y\n", "holds no row"),
        ("a.csv", "mol,y\nCC,1\n", "give --column one of mol, y"),
        ("a.csv", "smiles,sequence\nCC,M\n", "more than one column"),
        ("a.csv", "smiles,y,y\nCC,1,2\n", "two columns called 'y'"),
        ("a.csv", "smiles\nCC\n".encode("utf-16-le"), "not UTF-8 but seems to be UTF-16 without a mark"),
        ("a.csv", "smiles\nCC\n".encode("utf-16")[:-1], "is damaged UTF-16"),
        ("a.csv", "smiles;größe\nCC;1\n".encode("cp1252"), "line 1 of .* is not UTF-8"),
        ("a.parquet", "no parquet", "no readable Parquet file"),
        ("a.smi.gz", "no gzip", "cannot be read"),
        ("a.smi.gz", gzip.compress(b"CC\n" * 99, mtime=0)[:-9], "cannot be read"),
        ("a.xyz", "CC", "of no known kind"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_in_one_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_inputs(write(tmp_path, name, content))
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # what came undecoded from the file must still print


def test_a_column_that_is_missing_or_holds_numbers_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"smiles": [1, 2]}).write_parquet(path)
    with pytest.raises(InputError, match="holds Int64, not text"):
        read_inputs(path)
    with pytest.raises(InputError, match="no column 'mol' for --column: give one of smiles"):
        read_inputs(path, column="mol")
    with pytest.raises(InputError, match="leave out --column"):
        read_inputs("CCO", column="mol")


def test_a_file_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_BYTES", 2**16)
    path = write(tmp_path, "a.smi.gz", gzip.compress(b"C\n" * 2**20))
    with pytest.raises(InputError, match=r"unpacks to more than"):
        read_inputs(path)
    path = write(tmp_path, "b.smi.gz", gzip.compress(b"CC\n" * 2**14))  # as much, but within the bound of any file
    assert read_inputs(path)[0].height == 2**14


@pytest.mark.parametrize("suffix", [*FORMATS, ".csv.gz", ".sdf.gz", ".FASTA"])
def test_a_string_that_looks_like_a_file_is_not_taken_for_a_sequence(tmp_path, suffix):
    with pytest.raises(InputError, match="does not exist"):
        read_inputs(f"{tmp_path}/missing{suffix}")


def test_nothing_to_read_is_an_error():
    with pytest.raises(InputError, match="holds no row"):
        read_inputs([])
    with pytest.raises(InputError, match="cannot read sequences from int"):
        read_inputs(3)


def test_smiles_files(tmp_path):
    path = write(tmp_path, "a.smi", "SMILES Name\r\nCCO ethanol\r\n\r\nC  \tmarsh  gas\r\nN\r\n")
    rows, rejects = read_inputs(path)
    assert rows.rows() == [(0, "ethanol", "CCO"), (2, "marsh  gas", "C"), (3, None, "N")]
    assert rejects.rows() == [(1, "", "the sequence is empty")]


def test_what_rdkit_writes_is_read(tmp_path):
    mols = [Chem.MolFromSmiles(s) for s in (ASPIRIN, "C[C@H](N)C(=O)O", "[Na+].[Cl-]")]
    for mol in mols:
        mol.SetProp("_Name", Chem.MolToSmiles(mol)[::-1])
        mol.SetProp("pIC50", "6.5")
    expected = [Chem.MolToSmiles(mol) for mol in mols]
    with Chem.SmilesWriter(str(tmp_path / "a.smi")) as smi, Chem.SDWriter(str(tmp_path / "a.sdf")) as sdf:
        for mol in mols:
            smi.write(mol)
            sdf.write(mol)
    write(tmp_path, "b.sdf.gz", gzip.compress((tmp_path / "a.sdf").read_bytes()))
    for name in ("a.smi", "a.sdf", "b.sdf.gz"):
        rows, rejects = read_inputs(tmp_path / name)
        assert rejects.is_empty()
        assert rows["sequence"].to_list() == expected
        assert rows["name"].to_list() == [smiles[::-1] for smiles in expected]
    assert rows["pIC50"].to_list() == [6.5] * 3


def test_bad_sdf_records_do_not_harm_their_neighbours(tmp_path):
    pentavalent = Chem.MolFromSmiles("CC(C)(C)(C)C", sanitize=False)
    pentavalent.SetProp("_Name", "crowded")
    good = Chem.MolFromSmiles("CCO")
    damaged = sdf_record(good).replace("  3  2", "  9  2")
    content = sdf_record(good, index="a") + sdf_record(pentavalent) + damaged + "rubbish\n$$$$\n" + sdf_record(good)
    rows, rejects = read_inputs(write(tmp_path, "a.sdf", content))
    assert rows.select("index", "sequence", "input_index").rows() == [(0, "CCO", "a"), (4, "CCO", None)]
    assert rejects["index"].to_list() == [1, 2, 3]
    assert rejects["input"].to_list() == ["crowded", "", "rubbish"]
    assert "valence" in rejects["reason"][0]
    assert rejects["reason"][1] == "RDKit cannot read the record"
    assert rejects["reason"][2].startswith("the record has no line 'M  END'")


def test_fasta(tmp_path):
    content = ">sp|P1 first one\nMKV\nLA A\n>empty\n>p3\r\nGG*\r\n"
    rows, rejects = read_inputs(write(tmp_path, "a.fasta.gz", gzip.compress(content.encode())))
    assert rows.rows() == [(0, "sp|P1", "MKVLAA", "first one"), (2, "p3", "GG*", None)]
    assert rejects.rows() == [(1, "empty", "the sequence is empty")]
    rows, rejects = read_inputs(write(tmp_path, "b.fa", "; comment\n>p\nMK\n"))
    assert rows.row(0)[:3] == (1, "p", "MK")
    assert rejects.rows() == [(0, "; comment", "text before the first '>'")]


@pytest.mark.parametrize(
    ("data", "column", "expected"),
    [
        (b"CCO ethanol\nC\n", None, ["CCO", "C"]),
        (b">p\nMK\nV\n", None, ["MKV"]),
        (b">>CCO\n", None, [">>CCO"]),
        (b"y,mol\n1,CCO\n", "mol", ["CCO"]),
    ],
)
def test_standard_input(monkeypatch, data, column, expected):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert sequences("-", column=column) == expected


def test_a_file_wins_over_a_sequence_of_the_same_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.smi", "CCO\n")
    (tmp_path / "C").mkdir()
    assert sequences("a.smi") == ["CCO"]
    assert sequences("C") == ["C"]  # a folder is no file

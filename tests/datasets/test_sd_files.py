"""SD files as people and programs write them."""

import gzip

import pytest
from rdkit import Chem

from isotrace.datasets.inputs import read_inputs


def block(smiles: str, title: str = "t", version: int = 2000) -> str:
    mol = Chem.MolFromSmiles(smiles)
    mol.SetProp("_Name", title)
    return Chem.MolToMolBlock(mol) if version == 2000 else Chem.MolToV3KMolBlock(mol)


def read(folder, *records: str, end: str = "$$$$\n", name="a.sdf", newline="\n"):
    content = "".join(record + end for record in records).replace("\n", newline).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    rows, rejects = read_inputs(str(folder / name))
    return rows, rejects


@pytest.mark.parametrize("version", [2000, 3000])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.sdf", "a.sdf.gz"])
def test_fields_of_every_layout(tmp_path, version, newline, name):
    fields = ">  <y>\n3.5\n\n> 25-MAY-24 DT7 (MD-1) <melting point> (12)\n80\nto 82\n\n>  DT12\n5\n\n> <a (>7)>\nx\n"
    rows, rejects = read(tmp_path, block("CO", version=version) + fields, name=name, newline=newline)
    assert rejects.is_empty()
    assert rows.row(0, named=True) == {
        "index": 0, "name": "t", "sequence": "CO", "original": [0, 1], "y": 3.5,
        "melting point": "80\nto 82", "DT12": 5, "a (>7)": "x",
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        ">  <y>\n3.5\n",  # no blank line before the end
        ">  <x>\nlab\n \n>  <y>\n3.5\n \n",  # lines that separate hold a blank
        ">  <x>\nlab\n>  <y>\n3.5\n\n",  # none separates
        ">  <x>\n>  <y>\n3.5\n\n",  # an empty value
        ">  <y>\n3.5\n>  DT12\nlab\n\n",
        ">  <>\nlab\n\n>  <y>\n3.5\n\n",
        "\n\n>  <y>\n 3.5 \n\n\n\n",
        ">  <y>\n3.5\n\n>  <y>\n3.5\n\n",  # twice the same
    ],
)
def test_fields_behind_an_odd_line_are_read(tmp_path, fields):
    rows, rejects = read(tmp_path, block("CO") + fields, block("CN") + ">  <y>\n7.25\n\n")
    assert rejects.is_empty()
    assert rows["y"].to_list() == [3.5, 7.25]
    if "lab" in fields:
        assert "lab" in rows.row(0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("exported by hand\n>  <y>\n3.5\n\n", "the line 'exported by hand' belongs to no data field"),
        (">  <y>\nfirst\n\nsecond\n\n", "the line 'second' belongs to no data field"),
        (">  y\n3.5\n\n", "the data header '>  y' names no field"),
        (">  <y>\n1\n\n>  <y>\n2\n\n", "'y' stands twice"),
        (">  <y>\n\xff\0\n\n", "NUL"),
    ],
)
def test_what_belongs_to_no_field_is_a_reject_with_the_line(tmp_path, fields, reason):
    rows, rejects = read(tmp_path, block("CO", "one") + fields, block("CN") + ">  <y>\n7.25\n\n")
    assert rows.select("index", "sequence", "y").rows() == [(1, "CN", 7.25)]
    assert rejects.select("index", "input").rows() == [(0, "one")]
    assert reason in rejects["reason"][0]


def test_values_may_look_like_headers_and_separators(tmp_path):
    rows, rejects = read(tmp_path, block("CO") + ">  <ic50>\n>10\n\n>  <reaction>\n>>CO\n\n>  <price>\nUS$$$$ 5\n\n")
    assert rejects.is_empty()
    assert rows.select("ic50", "reaction", "price").rows() == [(">10", ">>CO", "US$$$$ 5")]


def test_a_missing_separator_rejects_the_molecules_it_joins(tmp_path):
    joined = block("CO", "a") + ">  <y>\n3.5\n\n" + block("CN", "b")
    rows, rejects = read(tmp_path, joined, block("CF", "c"))
    assert rows.select("index", "name").rows() == [(2, "c")]
    assert rejects["index"].to_list() == [0, 1]
    assert set(rejects["reason"]) == {"the line $$$$ is missing between 2 molecules"}


def test_a_record_that_is_cut_off_is_a_reject(tmp_path):
    cut = block("CO").replace("M  END\n", "")
    rows, rejects = read(tmp_path, cut + ">  <y>\n1\n\n", block("CN"), block("CF")[:60])
    assert rows["index"].to_list() == [1]
    assert rejects["index"].to_list() == [0, 2]
    assert all("no line 'M  END'" in reason for reason in rejects["reason"])


def test_text_behind_the_separator_and_a_missing_last_one(tmp_path):
    rows, _ = read(tmp_path, block("CO") + "$$$$ 1 of 2\n" + block("CN"), end="")
    assert rows["sequence"].to_list() == ["CO", "CN"]


def test_names_of_fields_that_are_ours_or_begin_with_an_underscore(tmp_path):
    fields = "".join(
        f">  <{name}>\n{i}\n\n" for i, name in enumerate(["_id", "name", "input_name", "index", "original"])
    )
    rows, _ = read(tmp_path, block("CO", "title") + fields)
    assert rows.row(0, named=True) == {
        "index": 0, "name": "title", "sequence": "CO", "original": [0, 1],
        "_id": 0, "input_input_name": 1, "input_name": 2, "input_index": 3, "input_original": 4,
    }  # fmt: skip


def test_no_atoms_are_no_sequence(tmp_path):
    rows, rejects = read(tmp_path, block(""), block("CO"))
    assert (rows["index"].to_list(), rejects["reason"].to_list()) == ([1], ["the sequence is empty"])

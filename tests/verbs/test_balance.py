"""`isotrace balance`, from Python and from the shell."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

import isotrace
from isotrace.base.errors import InputError
from isotrace.cli.commands import app

ROWS = ["CC(=O)O.CCO>>CC(=O)OCC", "C>>", "CCBr>>CCCl", "CC(=O)O.CO>>CC(=O)OC.O", "*C>>CC"]


def test_verdicts_shares_and_rejects():
    result = isotrace.balance(ROWS)
    assert result.to_frame()["verdict"].to_list() == ["product contained", "atoms from nowhere", "balanced"]
    assert result.to_frame()["index"].to_list() == [0, 2, 3]
    assert len(repr(result)) <= 1_000
    assert [row["index"] for row in result.summary["rejects"]] == [1, 4]
    assert "no product" in result.summary["rejects"][0]["reason"]
    assert result.summary["verdicts"] == {"balanced": 1, "product contained": 1, "atoms from nowhere": 1}
    contained, balanced = result.summary["shares"]
    assert (contained["n"], balanced["n"]) == (2, 1)
    # of the two ways to move all products, one brings CC(=O)OC.O to CC(=O)O.CCO, which holds its heavy atoms
    assert contained["null"] in (0, 1 / 3)
    assert balanced["null"] == 0
    with pytest.raises(InputError, match="first reason"):
        isotrace.balance(["CCO"])


def test_the_command_says_the_same_and_what_it_saves_is_read(tmp_path):
    mapped = "[CH3:1][Cl:2].[OH2:3]>>[CH3:1][OH:3]"
    pl.DataFrame({"rxn": ["CCl.O>>CO", "CCl>>CO"], "mapped": [mapped, mapped]}).write_csv(tmp_path / "data.csv")
    given = ("balance", tmp_path / "data.csv", "--column", "rxn", "--maps", "mapped", "--out", tmp_path / "run")
    printed = CliRunner().invoke(app, [*map(str, given), "--json"], catch_exceptions=False)
    found = json.loads(printed.stdout)
    assert [(row["verdict"], row["without_origin"]) for row in found["reactions"]] == [
        ("product contained", []),
        ("atoms from nowhere", [3]),
    ]
    loaded = isotrace.load(tmp_path / "run")
    assert loaded.to_dict() == found
    assert loaded == isotrace.balance(tmp_path / "data.csv", column="rxn", maps="mapped")
    shown = CliRunner().invoke(app, [*map(str, given[:6]), "--overwrite"], catch_exceptions=False).stdout
    assert "contained: 1 of 2" in shown
    with pytest.raises(InputError, match="for --maps"):
        isotrace.balance(tmp_path / "data.csv", column="rxn", maps="absent")


def test_the_page_escapes_what_it_is_given():
    assert "CC&gt;&gt;CC" in isotrace.balance(["CC>>CC", "C>>C"]).page()

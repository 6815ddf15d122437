"""What can be told of the arguments is told before anything heavy is imported: torch takes seconds."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from isotrace.cli import app

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "numba", "rdkit")
RDKIT = {"rdkit"}
MOLM, CLT = "bundled:molm", "bundled:molm-clt"
SAID = {  # arguments → (what is said, exit code, what may be imported)
    ("trace", "bundled:nope", CLT, "CCO", "--target", "probe:bbb"): ("no bundled subject", 3, set()),
    ("trace", MOLM, "bundled:nope", "CCO", "--target", "probe:bbb"): ("no bundled dictionary", 4, set()),
    ("trace", MOLM, CLT, "CCO", "--target", "bbb"): ("did you mean probe:bbb?", 2, RDKIT),
    ("trace", MOLM, CLT, "CCO", "--target", "probe:logp"): ("no probe 'logp'", 2, RDKIT),
    ("trace", MOLM, CLT, "absent.csv", "--target", "probe:bbb"): ("absent.csv does not exist", 2, RDKIT),
    ("trace", MOLM, CLT, "c1ccc", "--target", "probe:bbb"): ("ring closure 1", 2, RDKIT),
    ("trace", MOLM, CLT, "CCO", "--target", "mask:1", "--seed", "-1"): ("", 2, set()),
    ("evaluate", MOLM, CLT, "--data", "absent.csv"): ("absent.csv does not exist", 2, RDKIT),
    ("evaluate", MOLM, "absent", "--data", "absent.csv"): ("'absent' is no dictionary", 4, set()),
    ("features", "pypi:absent", CLT, "--data", "absent.csv"): ("no known subject", 3, set()),
    ("annotate", MOLM, CLT, "--data", "data.csv", "--group", "batch"): ("no column 'batch' for --group", 2, RDKIT),
    ("circuit", MOLM, CLT, "--data", "data.csv", "--label", "logd"): ("did you mean 'logD'?", 2, RDKIT),
    ("circuit", MOLM, CLT, "--data", "data.csv", "--label", "logD", "--column", "x"): ("no column 'x'", 2, RDKIT),
    ("harvest", "absent", "--data", "data.csv", "--tokens", "9", "--out", "x"): ("'absent' is no subject", 3, set()),
    ("train", MOLM, "--architecture", "sae", "--out", "x"): ("give --data with sequences, or --store", 2, set()),
    ("train", MOLM, "--architecture", "sae", "--out", "x", "--data", "no.smi"): ("no.smi does not exist", 2, RDKIT),
    ("convert", "absent", "--to", "isotrace", "--out", "x"): ("absent does not exist", 2, set()),
    ("report", "absent"): ("absent is no run folder", 5, set()),
    ("subjects", "absent"): ("'absent' is no subject", 3, set()),
    ("subjects",): ("bundled:molm", 0, set()),
    ("--help",): ("trace", 0, set()),
    ("trace", "--help"): ("--target", 0, set()),
    ("circuit", "--help"): ("--label", 0, set()),
}
RUN = """
import contextlib, io, json, sys
from isotrace.cli import main
for arguments in json.loads(sys.argv[1]):
    before, said = set(sys.modules), io.StringIO()
    sys.argv = ["isotrace", *arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    heavy = [name for name in json.loads(%r) if name in sys.modules]
    print(json.dumps([said.getvalue(), code, heavy]), flush=True)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each says and has imported: two processes, those without RDKit first, so that it is told who imported it."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "data.csv").write_text("smiles,logD\nCCO,1.5\nCCN,2.5\n")
    answers = {}
    for allowed in (set(), RDKIT):
        asked = [arguments for arguments, (_, _, may) in SAID.items() if may == allowed]
        command = [sys.executable, "-c", RUN % json.dumps(HEAVY), json.dumps(asked)]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        answers |= dict(zip(asked, map(json.loads, ran.stdout.splitlines()), strict=True))
    return answers


@pytest.mark.parametrize("arguments", SAID, ids=" ".join)
def test_it_is_said_before_anything_heavy_is_imported(found, arguments):
    said, code, heavy = found[arguments]
    words, expected, allowed = SAID[arguments]
    assert code == expected, said
    assert words in " ".join(said.split())
    assert "Traceback" not in said
    assert {*heavy} <= allowed


COMPLETED = {"isotrace tr": ["trace", "train", "transfer"], "isotrace trace --tar": ["--target"]}


@pytest.mark.parametrize(("typed", "offered"), COMPLETED.items())
def test_the_shell_completes_commands_and_options(typed, offered):
    completing = {"_ISOTRACE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    ran = CliRunner().invoke(app, [], prog_name="isotrace", env=completing)
    assert ran.output.split() == offered

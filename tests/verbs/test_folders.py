"""Run folders: none is shared by two runs, blocked by a failed one, or computed twice."""

import json
import shutil
from inspect import signature
from pathlib import Path

import pytest
import torch

import isotrace
import tiny
from isotrace.base.errors import InputError, RunError
from isotrace.base.files import locked
from isotrace.base.result import Result
from isotrace.base.runs import read_manifest
from isotrace.cli import Stopped
from isotrace.cli.command import own_folder
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.verbs.circuit import CircuitRequest
from isotrace.verbs.trace import TraceRequest
from isotrace.verbs.tracing import Tracer

QUICK = {"max_features": 30, "nodes": 4, "controls": 2, "spellings": 0, "domain": "molecule", "circuit": "effects"}
ROWS = [*tiny.MOLECULES[:4], "C?C"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder of a subject, folder of its dictionary)."""
    root = tmp_path_factory.mktemp("world")
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), root / "bert"))
    save_dictionary(tiny.random_dictionary(subject), root / "clt", reference(subject), dtype=torch.float32, training={})
    return root / "bert", root / "clt"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["smiles,name", *(f"{row},{'long ' * 80}{i}" for i, row in enumerate(ROWS))]) + "\n")
    return path


@pytest.fixture
def traced(monkeypatch):
    """What was traced. `traced.stop` stops at its trace of that number."""
    real = Tracer.trace

    class Seen(list):
        stop = None

    seen = Seen()

    def trace(self, sequence, *given, **more):
        if len(seen) == seen.stop:
            raise Stopped
        seen.append(sequence)
        return real(self, sequence, *given, **more)

    monkeypatch.setattr(Tracer, "trace", trace)
    return seen


def content(folder: Path) -> dict[str, bytes]:
    """All that a run wrote but for when and how fast it did."""
    names = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names if path.name != "manifest.json"}


def test_one_worker_and_many_leave_the_same_files_and_nothing_to_do(world, data, traced, tmp_path):
    subject, dictionary = world
    asked = {"target": "mask:3", **QUICK}
    made = [
        isotrace.trace(subject, dictionary, data, **asked, out=tmp_path / str(n), workers=n).tables["rejects"]
        for n in (1, 2)
    ]
    assert {*traced} == {"C?C"}  # by this process: what cannot be traced, which it has to say
    traced.clear()
    assert made[0].height == made[1].height == 1
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert len([*(tmp_path / "1").glob("*/graph.json")]) == len(ROWS) - 1
    alone = isotrace.trace(subject, dictionary, data, **asked, out=tmp_path / "alone")
    assert len(traced) == len(ROWS)
    assert (
        read_manifest(tmp_path / "alone" / "summary")["command"].replace("alone", "2")
        == (read_manifest(tmp_path / "2" / "summary")["command"])
    )
    assert alone.to_frame().columns == isotrace.load(tmp_path / "2" / "summary").to_frame().columns
    for wrong, message in (
        ({"workers": 2}, "give --out"),
        ({"backend": "ray", "out": tmp_path / "x"}, "give --workers"),
        ({"workers": 2, "backend": "dask", "out": tmp_path / "x"}, "no backend 'dask'"),
        ({"workers": 2, "quick": True, "out": tmp_path / "x"}, "one process"),
    ):
        given = {"target": "mask:3", **({"domain": "molecule"} if "quick" in wrong else QUICK), **wrong}
        with pytest.raises(InputError, match=message):
            isotrace.trace(subject, dictionary, data, **given)
    with pytest.raises(InputError, match="one process"):
        isotrace.trace(subject, dictionary, "CCO", workers=2, out=tmp_path / "x", **asked)
    with pytest.raises(InputError, match="by its name or folder"):
        isotrace.trace(tiny.load_tiny(subject), dictionary, data, workers=2, out=tmp_path / "x", target="mask:3")


def test_a_folder_of_its_own_for_every_command():
    given = {"subject": "s", "dictionary": "d", "target": "probe:bbb"}
    smiles = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "F/C=C/F", "F/C=C\\F", "C#N", "C=N", "c1ccccc1O", "C1CCCCC1O"]
    requests = [TraceRequest(data=text, **given) for text in (*smiles, "C" * 300, "C" * 301)]
    requests += [TraceRequest(data="CCO", seed=1, **given), TraceRequest(data="CCO", **given)]
    requests.append(CircuitRequest(subject="s", dictionary="d", data="CCO", label="y"))
    folders = [own_folder(request).name.lower() for request in requests]
    assert len(set(folders)) == len(folders)
    assert all(len(name) < 100 for name in folders)
    assert folders[0].startswith("trace-c-c-h-n-c-o-o-probe-bbb-")
    again = requests[0].model_copy(update={"overwrite": True})
    assert own_folder(again) == own_folder(requests[0])
    stdin = TraceRequest(data="-", **given)
    assert own_folder(stdin) != own_folder(stdin)


@pytest.mark.parametrize("stop", [pytest.param(0, marks=pytest.mark.nightly), 3])
def test_many_traces_go_on_behind_what_is_done(world, data, tmp_path, traced, stop):
    isotrace.trace(*world, data, "mask:2", out=tmp_path / "whole", **QUICK)
    again, out = list(traced), tmp_path / "stopped"
    traced.clear()
    traced.stop = stop
    with pytest.raises(Stopped):
        isotrace.trace(*world, data, "mask:2", out=out, **QUICK)
    traced.stop = None
    found = isotrace.trace(*world, data, "mask:2", out=out, **QUICK)
    assert traced == again
    assert content(out).keys() == content(tmp_path / "whole").keys()
    assert content(out) == content(tmp_path / "whole")
    assert Result.load(out / "summary") == found
    assert sorted(path.name[:7] for path in out.iterdir()) == [*(f"0000{i}-l" for i in range(4)), "summary"]


def test_a_trace_that_was_changed_or_has_other_inputs_is_made_again(world, data, tmp_path, traced):
    traced.stop = 3
    with pytest.raises(Stopped):
        isotrace.trace(*world, data, "mask:2", out=tmp_path / "out", **QUICK)
    done = sorted((tmp_path / "out").glob("0*/trace.json"))
    done[0].write_text("{}")
    data.write_text(data.read_text().replace(ROWS[1], "OCC"))
    traced.clear()
    traced.stop = None
    isotrace.trace(*world, data, "mask:2", out=tmp_path / "out", **QUICK)
    assert traced == [ROWS[0], "OCC", *ROWS[2:]]


def test_rows_that_are_gone_leave_no_folder(world, data, tmp_path):
    out = tmp_path / "out"
    isotrace.trace(*world, data, "mask:2", out=out, **QUICK)
    (out / "mine").mkdir()
    (out / "mine" / "manifest.json").write_text("{}")
    data.write_text(f"smiles,name\n{ROWS[1]},b\n")
    isotrace.trace(*world, data, "mask:2", out=out, **QUICK)
    assert sorted(path.name for path in out.iterdir()) == ["00000-b", "mine", "summary"]


@pytest.mark.parametrize(
    "target", ["probe:logp", "bbb", "mask:²", "mask:--1", "mask:99", "mask:1:Zz", "diff:1:C", "x:1"]
)
def test_a_target_that_fits_nothing_stops_before_the_first_row(world, data, tmp_path, traced, target):
    with pytest.raises(InputError):
        isotrace.trace(*world, data, target, out=tmp_path / "out", **QUICK)
    assert traced == []
    assert not (tmp_path / "out").exists()


def test_a_target_without_its_kind_is_told_it(world, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(world[0], folder)
    (folder / "probes" / "bbb").mkdir(parents=True)
    (folder / "probes" / "bbb" / "probe.json").write_text("{}")
    with pytest.raises(InputError, match="did you mean probe:bbb"):
        isotrace.trace(folder, world[1], "CCO", "bbb", **QUICK)


@pytest.mark.nightly
def test_a_failed_run_of_many_is_replaced_and_a_complete_one_is_not(world, data, tmp_path, traced):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no row"):
        isotrace.trace(*world, data, "mask:20", out=out, **QUICK)
    assert read_manifest(out / "summary")["status"] == "failed"
    isotrace.trace(*world, data, "mask:2", out=out, **QUICK)
    before = content(out)
    traced.clear()
    with pytest.raises(RunError, match=r"holds the run .* give --overwrite"):
        isotrace.trace(*world, data, "mask:1", out=out, **QUICK)
    assert (traced, content(out)) == ([], before)
    isotrace.trace(*world, data, "mask:1", out=out, overwrite=True, **QUICK)
    targets = {json.loads(path.read_text())["target"]["name"] for path in out.glob("0*/trace.json")}
    assert targets == {"mask:1"}


def test_one_and_many_follow_each_other_in_a_folder(world, data, tmp_path, traced):
    out = tmp_path / "out"
    isotrace.trace(*world, data, "mask:2", out=out, **QUICK)
    with pytest.raises(RunError, match="holds the run"):
        isotrace.trace(*world, "CCO", "mask:2", out=out, **QUICK)
    isotrace.trace(*world, "CCO", "mask:2", out=out, overwrite=True, **QUICK)
    assert not [path for path in out.iterdir() if path.is_dir()]
    with pytest.raises(RunError, match="holds the run"):
        isotrace.trace(*world, data, "mask:2", out=out, **QUICK)
    isotrace.trace(*world, data, "mask:2", out=out, overwrite=True, **QUICK)
    assert all(path.is_dir() for path in out.iterdir())


def test_two_runs_of_many_do_not_share_a_folder(world, data, tmp_path):
    def second(items, label):
        with pytest.raises(RunError, match="in use by process"):
            isotrace.trace(*world, data, "mask:2", out=tmp_path / "out", **QUICK)
        return items

    isotrace.trace(*world, data, "mask:2", out=tmp_path / "out", progress=second, **QUICK)
    assert read_manifest(tmp_path / "out" / "summary")["status"] == "complete"


WRITE = {
    "harvest": {"tokens": 40},
    "train": {"architecture": "sae", "features": 8, "k": 2, "tokens": 64},
    "evaluate": {"bootstrap": 20, "controls": False},
    "features": {},
    "fit_probe": {"label": "own"},
    "adapt": {"label": "own", "method": "probe"},
    "recommend": {"label": "own"},
    "transfer_matrix": {},
    "scan": {"label": "own", "mutations": "smiles", "wild_type": "CCO"},
    "steer": {"label": "own"},
    "annotate": {"sources": "dictionary", "permutations": 20, "bootstrap": 20, "min_positive": 1, "effects": False},
    "circuit": {"label": "own", "group": "own"},
    "trace": {"target": "mask:2"} | QUICK,
    "convert": {"source": "bundled:molm-clt", "to": "clt_training"},
    "demo": {},
    "balance": {"data": ["CCO>>CC=O"]},
    "tracing_map": {"least": 1e-6, "bootstrap": 20},
    "reproduce": {"name": "planted", "dictionary": ()},
}


def test_every_verb_that_writes_is_told_here():
    verbs = {name for name in dir(isotrace) if "out" in getattr(signature_of(name), "parameters", {})}
    assert verbs - {"doctor"} == set(WRITE)  # which only tries whether a folder can be written


def signature_of(name):
    found = getattr(isotrace, name)
    return signature(found) if callable(found) and not isinstance(found, type) else None


@pytest.mark.parametrize("verb", WRITE)
def test_a_folder_in_use_is_refused_by_every_verb(world, tmp_path, verb):
    (tmp_path / "data.csv").write_text("smiles,own\n" + "".join(f"{text},{i}\n" for i, text in enumerate(ROWS[:4])))
    (tmp_path / "checkpoints.csv").write_text(f"name,source\none,{world[0]}\n")
    (tmp_path / "tasks.csv").write_text("name,file,label\nown,data.csv,own\n")
    own = {"subject": world[0], "dictionary": world[1], "data": tmp_path / "data.csv", "domain": "molecule"}
    own |= {"subjects": (world[0],), "checkpoints": tmp_path / "checkpoints.csv", "tasks": tmp_path / "tasks.csv"}
    taken = signature(getattr(isotrace, verb)).parameters
    given = {name: value for name, value in own.items() if name in taken} | WRITE[verb]
    with locked(tmp_path / "out"), pytest.raises(RunError, match=r"out\S* is in use by process"):
        getattr(isotrace, verb)(out=tmp_path / "out", **given)

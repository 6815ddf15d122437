"""Verbs from Python: the same as the command line's JSON, whatever kind the data are of."""

import inspect
import json
import pickle
import shlex
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
import torch
import typer
from rdkit import Chem
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from typer.testing import CliRunner

import isotrace
import tiny
import tiny_tasks
from isotrace.annotation.annotate import AnnotationConfig
from isotrace.attribution.trace import TraceConfig
from isotrace.base.errors import InputError
from isotrace.base.result import Result
from isotrace.base.runs import dumps, read_manifest
from isotrace.cli import app
from isotrace.cli.command import command_of
from isotrace.dictionaries.featuriser import Featuriser
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.discovery.tasks.task_circuit import TaskConfig
from isotrace.verbs.annotate import AnnotateRequest
from isotrace.verbs.circuit import CircuitRequest
from isotrace.verbs.request import OnSubject, shell
from isotrace.verbs.trace import TraceRequest

COMMANDS = {info.name: info.callback for info in app.registered_commands}
ROWS = [*tiny.MOLECULES, "C?C"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder of a subject, folder of its dictionary, file of sequences)."""
    root = tmp_path_factory.mktemp("world")
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), root / "bert"))
    save_dictionary(tiny.random_dictionary(subject), root / "clt", reference(subject), dtype=torch.float32, training={})
    (root / "data.csv").write_text("\n".join(["smiles", *ROWS]) + "\n")
    return root / "bert", root / "clt", root / "data.csv"


def said(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def as_printed(result):
    return json.loads(dumps(result.to_dict()))


def test_features_are_those_of_the_dictionary_token_by_token(world):
    subject = tiny.load_tiny(world[0])
    dictionary = load_dictionary(world[1], subject)
    found = isotrace.features(subject, dictionary, ROWS)
    assert as_printed(found)["rejects"][0]["index"] == 10
    table = found.to_frame()
    for index in (0, 3):
        batch = subject.tokenize([ROWS[index]])
        reads = subject.run(batch, capture=dictionary.config.reads).captured
        sites = enumerate(dictionary.config.reads)
        dense = torch.stack([dictionary.encode(i, reads[site][0]).dense(12) for i, site in sites])
        expected = {tuple(place): float(dense[tuple(place)]) for place in torch.nonzero(dense).tolist()}
        rows = table.filter(pl.col("index") == index)
        got = {(r["layer"], r["position"], r["feature"]): r["activation"] for r in rows.to_dicts()}
        assert got.keys() == expected.keys()
        assert all(got[key] == pytest.approx(expected[key], rel=1e-5) for key in got)
        assert rows["token"].to_list() == [subject.tokens(batch.ids[0])[p] for p in rows["position"]]


def test_atoms_are_numbered_as_in_the_molecule_given(world):
    mol = Chem.RenumberAtoms(Chem.MolFromSmiles("NCCNC"), [3, 1, 4, 0, 2])
    table = isotrace.features(world[0], world[1], [mol], domain="molecule").to_frame()
    placed = [(row["token"], mol.GetAtomWithIdx(i).GetSymbol()) for row in table.to_dicts() for i in row["elements"]]
    assert placed
    assert all(token.startswith(symbol) for token, symbol in placed)
    assert {i for row in table["elements"].to_list() for i in row} == set(range(5))


def test_features_equal_the_command_and_are_saved(world, tmp_path):
    subject, dictionary, data = world
    printed = said("features", subject, dictionary, "--data", data, "--domain", "molecule", "--out", tmp_path / "run")
    found = isotrace.features(subject, dictionary, str(data), domain="molecule")
    assert as_printed(found) == printed
    saved = Result.load(tmp_path / "run")
    assert saved == found
    assert saved.to_frame().equals(found.to_frame())
    command_line = f"isotrace features {subject} {dictionary} --domain molecule --data {data} --out {tmp_path / 'run'}"
    assert sorted(read_manifest(tmp_path / "run")["command"].split()) == sorted(command_line.split())


def test_every_kind_of_data_is_the_same(world):
    pandas = pytest.importorskip("pandas")
    subject = tiny.load_tiny(world[0])
    texts = ROWS[:-1]
    kinds = [str(world[2]), world[2], texts, tuple(texts), pl.Series(texts), pandas.Series(texts),
             pl.DataFrame({"smiles": texts}), pandas.DataFrame({"smiles": texts})]  # fmt: skip
    tables = [isotrace.features(subject, world[1], kind).to_frame() for kind in kinds]
    assert all(table.equals(tables[0]) for table in tables)
    canonical = [Chem.CanonSmiles(text) for text in texts]
    molecules = isotrace.features(subject, world[1], [Chem.MolFromSmiles(text) for text in texts]).to_frame()
    written = isotrace.features(subject, world[1], canonical).to_frame()
    assert molecules.drop("elements").equals(written.drop("elements"))


QUICK = {"max_features": 30, "nodes": 4, "controls": 2, "spellings": 0, "circuit": "effects"}


def test_trace_equals_the_command_and_is_saved(world, tmp_path):
    (subject, dictionary, _), rows, data = world, [*ROWS[:2], ROWS[-1]], tmp_path / "few.smi"
    data.write_text("\n".join(rows) + "\n")
    options = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", value)]
    given = ("--target", "mask:2", "--domain", "molecule", *options)
    printed = said("trace", subject, dictionary, data, *given, "--out", tmp_path / "shell")
    found = isotrace.trace(subject, dictionary, data, "mask:2", domain="molecule", out=tmp_path / "python", **QUICK)
    assert as_printed(found) == printed
    assert [t["index"] for t in printed["traces"]] == list(range(len(rows) - 1))
    assert [r["index"] for r in printed["rejects"]] == [len(rows) - 1]
    table = found.to_frame()
    for trace, row in zip(printed["traces"], table.to_dicts(), strict=True):
        assert row["error"] == trace["circuit"]["error"]
        assert row["control_error"] == trace["circuit"]["control"]["error_mean"]
    for folder in (tmp_path / "shell", tmp_path / "python"):
        assert Result.load(folder / "summary") == found
    assert Result.load(tmp_path / "python" / "00000") == found.found[0]
    one = isotrace.trace(tiny.load_tiny(subject), dictionary, ROWS[0], "mask:2", **QUICK)
    assert one.summary["circuit"] == found.found[0].summary["circuit"]
    assert said("trace", subject, dictionary, ROWS[0], *given) == as_printed(found.found[0])


def test_a_trace_of_molecules_numbers_their_atoms(world, tmp_path):
    """A molecule, a list of them and an SD file: the atoms are those that came in."""
    mol = Chem.RenumberAtoms(Chem.MolFromSmiles("NCCNC"), [3, 0, 1, 4, 2])
    with Chem.SDWriter(str(tmp_path / "one.sdf")) as file:
        file.write(mol)
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    assert symbols != list("NCCNC")
    asked = (world[0], world[1])
    alone = isotrace.trace(*asked, mol, "mask:2", domain="molecule", **QUICK)
    for data in ([mol], tmp_path / "one.sdf"):
        (one,) = isotrace.trace(*asked, data, "mask:2", domain="molecule", **QUICK).found
        assert [u["symbol"] for u in one.units] == symbols
        assert one.units == alone.units


def test_evaluate_equals_the_command(world):
    subject, dictionary, data = world
    given = ("--data", data, "--domain", "molecule", "--no-controls", "--bootstrap", 20, "--seed", 2)
    printed = said("evaluate", subject, dictionary, *given)
    loaded = tiny.load_tiny(subject)
    found = isotrace.evaluate(subject, dictionary, data, domain="molecule", controls=False, bootstrap=20, seed=2)
    assert as_printed(found) == printed
    again = isotrace.evaluate(
        loaded, load_dictionary(dictionary, loaded), ROWS, controls=False, bootstrap=20, seed=2, progress=lambda i, _: i
    )
    assert again.summary["dictionaries"][0]["free_running"] == printed["dictionaries"][0]["free_running"]


def test_circuit_equals_the_command_and_is_saved(tmp_path):
    folder = tiny_tasks.fitted_folder(tmp_path)
    subject = tiny.load_tiny(folder)
    dictionary = tiny.exact_dictionary(subject)
    save_dictionary(dictionary, tmp_path / "exact", reference(subject), dtype=torch.float32, training={})
    rows = [*((text, int(marked)) for text, marked in tiny_tasks.molecules()), ("C?C", 1)]
    table = pl.DataFrame(rows, schema=["smiles", "bromine"], orient="row")
    table.write_csv(tmp_path / "data.csv")
    quick = ("--sizes", "2,72", "--controls", 2, "--bootstrap", 20, "--drawn", 1, "--seed", 1, "--domain", "molecule")
    given = ("--data", tmp_path / "data.csv", "--label", "bromine", *quick, "--out", tmp_path / "shell")
    printed = said("circuit", folder, tmp_path / "exact", *given)
    assert [row["input"] for row in printed["rejects"]] == ["C?C"]
    same = {"sizes": (2, 72), "controls": 2, "bootstrap": 20, "drawn": 1, "seed": 1}
    found = isotrace.circuit(
        folder, tmp_path / "exact", table, "bromine", out=tmp_path / "one", domain="molecule", **same
    )
    assert as_printed(found) == printed
    assert found == Result.load(tmp_path / "shell")
    assert isotrace.circuit(folder, tmp_path / "exact", table, "bromine", domain="molecule", **same) == found
    loaded = load_dictionary(tmp_path / "exact", subject)
    renamed = table.rename({"smiles": "drug"})
    again = isotrace.circuit(subject, loaded, renamed, "bromine", out=tmp_path / "two", column="drug", **same)
    assert as_printed(again) == printed
    with pytest.raises(InputError, match="--sizes 'many': give whole numbers"):
        isotrace.circuit(subject, loaded, table, "bromine", out=tmp_path / "three", sizes="many")


def test_harvest_and_train_equal_the_commands(world, tmp_path):
    subject, _, data = world
    common = {"tokens": 200, "hookpoints": "mlp_in", "layers": [0, 2], "domain": "molecule"}
    found = isotrace.harvest(subject, ROWS, out=tmp_path / "python", **common).to_dict()
    options = ("--tokens", 200, "--hookpoints", "mlp_in", "--layers", "0,2", "--domain", "molecule")
    printed = said("harvest", subject, "--data", data, *options, "--out", tmp_path / "shell")
    assert found | {"folder": ""} == printed | {"folder": ""}
    files = [sorted((tmp_path / name).glob("shard-*")) for name in ("python", "shell")]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True)] == [True]


def test_wrong_parameters_say_which_are_right(world):
    with pytest.raises(InputError, match=r"does not know 'sead'.*seed"):
        isotrace.evaluate(world[0], world[1], ROWS, sead=3)
    with pytest.raises(InputError, match="needs 'data'"):
        isotrace.evaluate(world[0], world[1])
    with pytest.raises(InputError, match="needs sequences: give --data"):
        isotrace.features(world[0], world[1])
    with pytest.raises(InputError, match=r"--dtype 'float8': use float32, float16 or bfloat16\."):
        isotrace.harvest(world[0], ROWS, 5, "x", dtype="float8")
    with pytest.raises(InputError, match="--seed -1"):
        isotrace.evaluate(world[0], world[1], ROWS, seed=-1)
    with pytest.raises(InputError, match="--device is for a subject that is loaded here"):
        isotrace.features(tiny.load_tiny(world[0]), world[1], ROWS, device="cpu")


ASKED = [
    isotrace.trace.request(subject="a folder/s", dictionary="bundled:molm-clt", data="C/C=C/O", target="mask:2:[nH]",
                           tolerance=0.25, ablation="zero", out="runs/it's", device="cuda:1"),
    isotrace.evaluate.request(subject="s", dictionary=("one", "the other"), data="-", controls=False, seed=3),
    isotrace.annotate.request(subject="s", dictionary="d", data="x.csv", effects=False, label=("a b", "c"),
                              concepts=("one.csv", "two.csv"), sources=("neurons", "random")),
    isotrace.circuit.request(subject="s", dictionary="d", data="x.csv", label="y", sizes=(2, 20), against=("r",)),
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.verb())
def test_the_command_of_a_request_asks_the_same(asked):
    """As a manifest has it, and as it is typed again; what is as ever is not said."""
    answered = []
    recording = lambda request, progress: answered.append(request)  # noqa: E731
    recording.request = type(asked)
    typed = typer.Typer()
    typed.command()(command_of(recording, lambda *_: None))
    tool, name, *words = shlex.split(asked.command)
    result = CliRunner().invoke(typed, words)
    assert result.exit_code == 0, result.output
    assert (tool, name, answered) == ("isotrace", asked.verb(), [asked])
    said = {word for word in words if word.startswith("--")}
    fields = type(asked).model_fields
    assert len(said) == sum(not shell(f).place and getattr(asked, n) != f.default for n, f in fields.items())


@pytest.mark.parametrize("name", [name for name, run in COMMANDS.items() if run.__module__ == command_of.__module__])
def test_the_help_holds_every_field(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    printed = " ".join(CliRunner().invoke(app, [name, "--help"], terminal_width=400).stdout.split())
    verb = inspect.getclosurevars(COMMANDS[name]).nonlocals["verb"]
    assert verb.request.model_fields
    for field, about in verb.request.model_fields.items():
        assert about.description, f"{name}: {field} says nothing"
        assert about.description in printed
        assert shell(about).place or (shell(about).name or f"--{field.replace('_', '-')}") in printed
        assert f"{field}: {about.description}" in verb.__doc__
    schema = verb.request.model_json_schema()
    assert schema["properties"].keys() == verb.request.model_fields.keys()
    if issubclass(verb.request, OnSubject):
        assert "device" in schema["properties"]


def pooled(world, pool):
    table = isotrace.features(world[0], world[1], ROWS[:-1], domain="molecule").to_frame()
    subject = tiny.load_tiny(world[0])
    matrix = np.zeros((10, tiny.N_LAYERS * 12))
    inner = [int((~subject.is_special[subject.tokenize([text]).ids[0]]).sum()) for text in ROWS[:-1]]
    for row in table.to_dicts():
        if row["token"] in subject.tokenizer.all_special_tokens:
            continue
        at = row["index"], row["layer"] * 12 + row["feature"]
        new = row["activation"] / inner[row["index"]]
        matrix[at] = max(matrix[at], row["activation"]) if pool == "max" else matrix[at] + new
    return matrix


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_the_featuriser_pools_the_table(world, pool):
    made = Featuriser(str(world[0]), str(world[1]), pool=pool)
    found = made.fit_transform(ROWS[:-1])
    assert sparse.issparse(found)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), pooled(world, pool), rtol=1e-5)
    names = made.get_feature_names_out()
    assert (len(names), names[0], names[-1]) == (36, "0.0", "2.11")


def test_the_featuriser_is_a_transformer(world):
    subject = tiny.load_tiny(world[0])
    made = Featuriser(subject, load_dictionary(world[1], subject), sparse_output=False).fit(ROWS[:-1])
    twin = clone(made)
    assert twin.get_params() == made.get_params()
    assert not hasattr(twin, "layers_")
    named = Featuriser(str(world[0]), str(world[1]), sparse_output=False).fit(ROWS[:-1])
    again = pickle.loads(pickle.dumps(named))
    np.testing.assert_array_equal(again.transform(ROWS[:3]), made.transform(ROWS[:3]))
    assert made.set_output(transform="polars").transform(ROWS[:3]).columns == [*made.get_feature_names_out()]
    labels = [text.startswith("C") for text in ROWS[:-1]]
    model = make_pipeline(clone(named), LogisticRegression(C=100)).fit(ROWS[:-1], labels)
    assert model.score(ROWS[:-1], labels) > 0.8
    with pytest.raises(InputError, match="pool 'sum'"):
        clone(named).set_params(pool="sum").fit(ROWS[:-1])
    with pytest.raises(InputError, match="C\\?C"):
        named.transform(ROWS)


@pytest.mark.parametrize(
    ("request_of", "needed", "config", "changed"),
    [
        (TraceRequest, {"target": "mask:1"}, TraceConfig, {"nodes": 7, "ablation": "zero", "seed": 3}),
        (AnnotateRequest, {}, AnnotationConfig, {"permutations": 99, "effects": False}),
        (CircuitRequest, {"label": "y"}, TaskConfig, {"bootstrap": 40, "sizes": (2, 3)}),
    ],
)
def test_settings_are_what_was_asked_for_and_else_their_defaults(request_of, needed, config, changed):
    given = {"subject": "s", "dictionary": "d", "data": "CCO"} | needed
    names = {field.name.removeprefix("n_"): field.name for field in fields(config)}
    assert request_of(**given).settings(config) == config()
    asked = request_of(**given, **changed).settings(config)
    assert asked == config(**{names[name]: value for name, value in changed.items()})

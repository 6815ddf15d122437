"""What people meet in a notebook: names, prints, pictures, and every verb with objects instead of paths."""

from dataclasses import replace
from importlib import import_module
from inspect import signature

import polars as pl
import pytest
from rdkit import Chem

import isotrace
import tiny
from isotrace.base.errors import RunError
from isotrace.base.result import RESULTS, Result
from isotrace.cli.commands import COMMANDS
from isotrace.evaluation.comparison import compare
from isotrace.interventions import Intervention, MLPs, Set
from isotrace.verbs.request import Answer

ROOMS = {"report", "subjects"}
"""Commands whose name is a room's, which `isotrace.NAME` therefore is."""
CALLED = {"map": "tracing_map", "probe": "fit_probe", "transfer": "transfer_matrix"}
"""Commands with another name in Python."""
TEXTS = ["CCO", "CC(=O)N", "c1cc[nH]c1", "OCCN"] * 3
QUICK = {"max_features": 30, "nodes": 4, "controls": 2, "spellings": 0}
FEW = {"sources": "dictionary", "permutations": 20, "bootstrap": 20, "min_positive": 1, "spellings": 0}


@pytest.fixture(scope="module")
def world(relu_subject):
    return relu_subject, tiny.exact_dictionary(relu_subject)


VERBS = {
    "trace": lambda s, d, data, out: isotrace.trace(s, d, data, "mask:2", **QUICK),
    "evaluate": lambda s, d, data, out: isotrace.evaluate(s, d, data, controls=False, bootstrap=20, mask_rate=0.5),
    "features": lambda s, d, data, out: isotrace.features(s, d, data),
    "annotate": lambda s, d, data, out: isotrace.annotate(s, d, data, effects=False, **FEW),
    "intervene": lambda s, d, data, out: isotrace.intervene(s, data, [Intervention(MLPs(), Set(0.0))]),
    "harvest": lambda s, d, data, out: isotrace.harvest(s, data, tokens=20, out=out / "store"),
    "train": lambda s, d, data, out: isotrace.train(
        s, data, architecture="sae", out=out / "run", tokens=64, features=8, k=2, config=settings(out)
    ),
}


def settings(out):
    (out / "c.toml").write_text("[training]\nbatch_tokens = 32\n")
    return out / "c.toml"


def some(verb):
    return TEXTS[:2] if verb == "trace" else TEXTS  # a trace takes half a second


def test_tab_completion_offers_every_verb():
    assert dir(isotrace) == isotrace.__all__ == sorted(isotrace.__all__)
    assert {CALLED.get(name, name) for name in COMMANDS} - ROOMS <= {*dir(isotrace)}
    for name in dir(isotrace):
        assert getattr(isotrace, name) is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_left_out_in_the_shell_is_no_empty_text(name):
    """Which a list of numbers would not take."""
    given = signature(import_module(f"isotrace.cli.{name}").command).parameters.values()
    assert "" not in [parameter.default for parameter in given]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_what_is_loaded(world, verb, tmp_path):
    """A list, a Series, tables and molecules, with a subject and a dictionary in memory: the same from all of them."""
    pandas = pytest.importorskip("pandas")
    canonical = [Chem.CanonSmiles(text) for text in some(verb)]
    kinds = [canonical, pl.Series(canonical), pl.DataFrame({"smiles": canonical}),
             pandas.DataFrame({"smiles": canonical}), [Chem.MolFromSmiles(text) for text in some(verb)]]  # fmt: skip
    found = []
    for place, data in enumerate(kinds):
        folder = tmp_path / str(place)
        folder.mkdir()
        result = VERBS[verb](*world, data, folder)
        assert len(repr(result)) <= 1_000
        found.append(result)
    if isinstance(found[0], Result):  # atoms of molecules keep numbers of their own
        tables = [one.to_frame().drop("elements", strict=False) for one in found]
        assert tables[0].height > 0
        assert all(table.equals(tables[0], null_equal=True) for table in tables)
    else:
        written = {"harvest": "store/shard-00000.safetensors", "train": "run/weights.safetensors"}[verb]
        assert len({(tmp_path / str(place) / written).read_bytes() for place in range(len(kinds))}) == 1


@pytest.fixture(scope="module")
def results(world, tmp_path_factory):
    """A result of every kind that these verbs give, and of one input."""
    out = tmp_path_factory.mktemp("out")
    verbs = ("trace", "evaluate", "features", "annotate", "intervene")
    found = [VERBS[verb](*world, some(verb), out) for verb in verbs]
    few = {name: value for name, value in QUICK.items() if name != "max_features"}
    two = isotrace.trace(*world, "CCCN", "mask:2", against="CCCO", **few)
    pairs = pl.DataFrame({"smiles": ["CCCN"], "partner": ["CCCO"]})
    found.append(isotrace.features(*world, TEXTS, feature="1.2", permutations=2))
    found += [two, isotrace.trace(*world, pairs, "mask:2", against="partner", **few)]
    return {one.kind: one for one in (*found, VERBS["trace"](*world, TEXTS[0], out))}


def inflated(summary):
    """Every text of it, and every first list of texts or rows, far longer."""
    longer = {}
    for name, value in summary.items():
        several = isinstance(value, list) and value and isinstance(value[0], str | dict)
        longer[name] = value * 1_000 if isinstance(value, str) or several else value
    return longer


def test_results_print_in_a_few_lines_whatever_was_found(results):
    assert {*results} == {*RESULTS} - {
        "adapt",
        "balance",
        "circuit",
        "map",
        "study",
        "probing",
        "recommendation",
        "scan",
        "screen",
        "steer",
        "transfer",
    }, "their own tests print these"
    for result in results.values():
        assert len(repr(result)) <= 1_000
        assert str(result) == repr(result)
        assert repr(result).startswith(type(result).__name__)
        large = replace(result, summary=inflated(result.summary))
        assert len(repr(large)) <= 1_000, type(result).__name__


def test_a_trace_shows_what_was_asked_and_what_to_doubt(results):
    result = results["trace"]
    html = result._repr_html_()
    assert len(html) < 60_000
    for part in ("<svg", "mask:2", f"{result.summary['target']['value']:.3f} logit", "Orange atoms raise the target"):
        assert part in html
    assert result.summary["warnings"]
    assert all(f"warning: {text}" in html for text in result.summary["warnings"] if "&" not in text)
    assert "<script" not in replace(result, summary=result.summary | {"input": "<script>"})._repr_html_()
    assert results["evaluation"]._repr_html_().count("loss recovered") > 1


def test_results_are_saved_in_a_plain_path_and_loaded(results, tmp_path):
    for kind, result in results.items():
        assert result.save(str(tmp_path / kind)) == tmp_path / kind
        loaded = isotrace.load(str(tmp_path / kind))
        assert loaded == result
        assert type(loaded) is type(result)
        assert len(repr(loaded)) <= 1_000
        result.save(tmp_path / kind)
        with pytest.raises(RunError, match="choose another --out or give --overwrite"):
            replace(result, view=result.view | {"other": 1}).save(tmp_path / kind)


def test_what_is_no_result_says_how_it_is_read(world, tmp_path):
    isotrace.trace(*world, TEXTS[:2], "mask:2", out=tmp_path / "many", **QUICK)
    assert isotrace.load(tmp_path / "many").kind == "traces"
    VERBS["train"](*world, TEXTS, tmp_path)
    with pytest.raises(RunError, match=r"is a dictionary: isotrace\.load_dictionary"):
        isotrace.load(tmp_path / "run")
    with pytest.raises(RunError, match="is no run folder"):
        isotrace.load(tmp_path / "absent")


def test_subjects_dictionaries_and_what_compare_and_train_give_print_short(world):
    subject, dictionary = world
    assert repr(subject).startswith(f"Subject {subject.source}: bert, masked, domain molecule")
    assert "layers.{}.mlp_in → layers.{}.mlp_out" in repr(dictionary)
    found = compare(subject, {"exact" * 500: dictionary}, TEXTS, controls=False, n_bootstrap=20, mask_rate=0.5)
    for thing in (subject, dictionary, found, Answer({"rejects": [{"input": "C" * 500}] * 500, "folder": "x"})):
        assert len(repr(thing)) <= 1_000
        assert " object at 0x" not in repr(thing)

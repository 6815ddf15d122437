"""The report of a task circuit: contributions per token, which sequences are drawn, tables, pictures, the page."""

import json
import pickle
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import polars as pl
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.base.result import Result
from isotrace.base.runs import open_run
from isotrace.datasets.tasks import Example, batches, prepare
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.discovery.overlap import earlier_circuit, overlap_with
from isotrace.discovery.tasks.basis import Basis, Statistics
from isotrace.discovery.tasks.examples import output_drawn, pick, token_contributions
from isotrace.discovery.tasks.ranking import rank
from isotrace.discovery.tasks.readout import Readout, fit_readout
from isotrace.discovery.tasks.sweep import Anchors, Ranked, per_layer, top
from isotrace.discovery.tasks.task_circuit import TaskCircuit, TaskConfig, find_circuit
from isotrace.domains.domain import domain_of
from isotrace.report.circuit.figures import curve_svg, falls_svg
from isotrace.report.circuit.payload import sentences
from isotrace.report.circuit.result import CircuitResult, circuit_result, named_parts
from isotrace.report.page import number

CHAINS = ["".join(p) for n in (4, 5) for p in product("CNO", repeat=n) if p[1] == "C"]
KINDS = ("class", "classes", "regression", "residue", "masked", "mutation")


def rows(kind: str) -> pl.DataFrame:
    """Chains of C, N and O; the label goes by their number of O."""
    oxygens = [c.count("O") for c in CHAINS]
    label = {
        "class": ["odd" if n % 2 else "even" for n in oxygens],
        "classes": [f"{min(n, 2)} of O" for n in oxygens],
        "regression": [n + 0.5 for n in oxygens],
        "residue": ["".join("1" if a == "O" else "0" for a in c) for c in CHAINS],
        "masked": [1] * len(CHAINS),
        "mutation": [n + 0.5 for n in oxygens],
    }[kind]
    part = [("train", "valid", "test")[(i + i // 3) % 3] for i in range(len(CHAINS))]
    return pl.DataFrame(
        {"sequence": CHAINS, "label": label, "part": part, "change": ["C2N"] * len(CHAINS), "own": CHAINS}
    ).with_row_index("index")


def data_of(subject, kind: str):
    named = "class" if kind == "classes" else kind
    return prepare(
        subject, domain_of("molecule"), rows(kind), label="label", kind=named, split="part", group="own",
        mutations="change" if kind == "mutation" else None, seed=0,
    )  # fmt: skip


def made_circuit(subject, kind: str, ranking: str = "attribution_patching", **given) -> TaskCircuit:
    """A circuit with a real ranking and readout, and a summary made up: one size, numbers that are missing."""
    data = data_of(subject, kind)
    readout = fit_readout(subject, data, None, 0)
    dictionary = tiny.random_dictionary(subject, **given)
    basis = Basis(subject, Features(dictionary))
    statistics = basis.statistics(batch for _, batch in data.batches("discover", 512, subject))
    scores = rank(ranking, basis, readout, data, statistics)
    chance = readout.chance(readout.labels(data.parts["report"])[0])
    anchors = Anchors(np.ones(3), np.zeros(3), chance, 1e-9)
    features = Ranked(basis, statistics, scores, anchors)
    share = {"value": 0.8, "sufficiency": 0.9, "ci": [0.7, 1.1], "faithfulness": float("nan"),
             "faithfulness_ci": [float("nan")] * 2}  # fmt: skip
    random = {"mean": 0.2, "ci": [0.1, 0.3], "sd": 0.1, "n": 2}
    neurons = {"n": 5, "fraction": 0.1} | share | {"difference": 0.0, "difference_ci": [-0.1, 0.1]}
    entry = {"n": 5, "fraction": 5 / basis.n, "free_running": share, "teacher_forced": share, "random": random,
             "neurons": neurons}  # fmt: skip
    sizes = {"79": 5, "90": None}
    summary = {
        "task": {"kind": data.kind, "label": data.label, "classes": list(data.classes), "n_fit": 1, "n_discover": 1,
                 "n_report": 1, "n_groups": 3, "n_rejected": 0},
        "task_metric": {"name": readout.metric, "subject": 0.8, "subject_ci": [0.7, 0.9], "chance": chance},
        "mediator": "feature", "n_features": basis.n, "n_neurons": 72, "ranking": ranking, "empty": share,
        "sweep": [entry], "area": dict.fromkeys(("features", "teacher_forced", "random", "neurons"), 0.5),
        "choice": {"n_groups": [1, 1], "sweep": [{"n": 5, "features": 0.9, "neurons": 0.9}], "features": sizes,
                   "neurons": sizes},
        "chosen": {"79": entry | {"neurons_chosen": neurons}, "90": None},
        "in_hindsight": dict.fromkeys(("features", "teacher_forced", "random", "neurons"), sizes),
        "necessity": {"n": 5, "value": 0.6, "fall": 0.4, "ci": [0.3, 0.5], "random": random,
                      "neurons": {"n": 5, "value": 0.7, "fall": 0.3, "ci": [0.2, 0.4]}},
        "unsigned": {"n": 5} | share,
        "layers": per_layer(top(basis, scores, 5), basis, dictionary.config.layers),
        "warnings": ["a <b>warning</b>"],
    }  # fmt: skip
    config = TaskConfig(ranking=ranking)
    return TaskCircuit(data, readout, features, features, summary, config)


NOBODY = FeatureTables(pl.DataFrame(), pl.DataFrame())


def result_of(found: TaskCircuit, subject, n_drawn: int = 4, overlap=()) -> CircuitResult:
    return circuit_result(
        found, subject, domain_of("molecule"), "a-dictionary", NOBODY, n_drawn=n_drawn, overlap=overlap
    )


def saved(found: TaskCircuit, subject, folder, **given):
    """(the run folder, the page)."""
    with open_run(folder / "run", command="isotrace circuit", seed=0, inputs={}, overwrite=False) as run:
        result_of(found, subject, **given).write(run)
    return folder / "run", (folder / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("ranking", ["attribution_patching", "eap_ig", "relp"])
@pytest.mark.parametrize("kind", ["regression", "classes", "residue"])
def test_contributions_add_up_to_the_scores_of_the_circuit(rotary, kind, ranking):
    found = made_circuit(rotary, kind, ranking)
    ranked, examples = found.features, found.data.parts["discover"]
    keep = top(ranked.basis, ranked.scores, 7)
    parts = token_contributions(
        ranked.basis, ranked.statistics, keep, found.readout, examples, found.readout.coefficients(examples), ranking
    )
    assert [len(p) for p in parts] == [len(e.ids) for e in examples]
    expected = ranked.scores.sort(descending=True).values[:7].sum().item()
    assert sum(p.sum() for p in parts) == pytest.approx(expected, rel=1e-4)


def test_contributions_of_a_sequence_do_not_depend_on_its_batch(rotary):
    found = made_circuit(rotary, "regression")
    ranked, examples = found.features, [*found.data.parts["report"][:2], found.data.parts["report"][-1]]
    assert len({len(e.ids) for e in examples}) == 2  # so that one of them is padded
    keep = top(ranked.basis, ranked.scores, 7)
    ones = lambda n: np.ones((n, 1))  # noqa: E731
    given = (ranked.basis, ranked.statistics, keep, found.readout)
    together = token_contributions(*given, examples, ones(3), "attribution_patching")
    for example, expected in zip(examples, together, strict=True):
        (alone,) = token_contributions(*given, [example], ones(1), "attribution_patching")
        np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-6)


def test_contributions_are_what_a_nudge_of_the_writes_does(rotary64):
    """Against finite differences, whose precision is that of the rotary embedding, which stays float32."""
    subject, dictionary = rotary64, tiny.random_dictionary(rotary64, window=2)

    nudges: dict = {}

    class Nudged(Features):
        def finish(self, subject, layer, total, x):
            return super().finish(subject, layer, total + nudges.get(layer, 0.0), x)

    basis = Basis(subject, Nudged(dictionary))
    generator = torch.Generator().manual_seed(1)
    mean = tuple(torch.rand(n, generator=generator) for n in basis.sizes)
    statistics = Statistics(mean, mean)
    readout = Readout(subject, "regression", "spearman", torch.randn(16, 1, generator=generator), torch.zeros(1))
    ids = subject.tokenize(["CCO"]).ids[0].numpy()
    example = Example(0, "CCO", ids, "", 1.0)
    keep = tuple(torch.tensor([1, 4, 7]) for _ in basis.sizes)
    (found,) = token_contributions(basis, statistics, keep, readout, [example], np.ones((1, 1)), "attribution_patching")
    (_, batch), = batches([example], 100, subject)  # fmt: skip
    active: list = []
    everything = tuple(torch.arange(n) for n in basis.sizes)
    with torch.no_grad(), basis.components.alone(mean).edited(subject, lambda _, a: active.append(a[..., 0]) or a):
        subject.hidden(batch.ids, batch.mask)
    for token in range(len(ids)):
        written: dict = {}
        for layer, kept in enumerate(keep):
            change = torch.zeros(1, len(ids), 3)
            change[0, token] = active[layer][0, token, kept] - mean[layer][kept]
            basis.writers.add(layer, change @ basis.writers.rows(subject, layer, kept), written)
        ends = []
        for step in (1e-3, -1e-3):
            nudges.update({layer: step * w for layer, w in written.items()})
            ends.append(readout.outputs([example], batch, basis.kept(batch, everything, statistics)).item())
        nudges.clear()
        assert found[token] == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_saved_and_drawn(rotary, kind, tmp_path):
    found = made_circuit(rotary, kind)
    folder, page = saved(found, rotary, tmp_path)
    assert json.loads((folder / "circuit.json").read_text())["sweep"][0]["free_running"]["faithfulness"] is None
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"circuit.json", "result.json", "sweep.parquet", "parts.parquet",
                                      "predictions.parquet", "rejects.parquet", "curve.svg", "layers.svg",
                                      "report.html"}  # fmt: skip
    assert page.count("<article>") == 4
    assert page.count("lowers it") == 4
    assert page.count('class="labelled"') == (4 if kind in ("residue", "masked", "mutation") else 0)
    assert page.count(", C2N") == (4 if kind == "mutation" else 0)
    assert "<b>warning</b>" not in page
    assert "NaN" not in page
    assert "nan" not in page


def test_a_circuit_found_is_saved_as_it_was_found(rotary, tmp_path):
    dictionary = tiny.random_dictionary(rotary)
    config = TaskConfig(sizes=(2, 12, 36), n_controls=2, n_bootstrap=20)
    found = find_circuit(rotary, dictionary, data_of(rotary, "regression"), config)
    folder, page = saved(found, rotary, tmp_path, n_drawn=0)
    sweep = pl.read_parquet(folder / "sweep.parquet")
    assert sweep["n"].to_list() == [2, 12, 36]
    for i, end in enumerate(("low", "high")):
        assert sweep[f"free_running_ci_{end}"].to_list() == [e["free_running"]["ci"][i] for e in found.summary["sweep"]]
    n = found.summary["necessity"]["n"]
    parts = pl.read_parquet(folder / "parts.parquet")
    assert parts.select("layer", "feature", "score").equals(found.parts(n).select("layer", "feature", "score"))
    assert "<article>" not in page


@pytest.fixture(scope="module")
def live(relu_subject):
    config = TaskConfig(sizes=(2, 12, 36, 72), n_controls=2, n_bootstrap=20)
    return find_circuit(relu_subject, tiny.exact_dictionary(relu_subject), data_of(relu_subject, "residue"), config)


@pytest.fixture(scope="module")
def result(live, relu_subject):
    return result_of(live, relu_subject, n_drawn=3)


def test_the_page_is_a_function_of_the_saved_run(result, tmp_path):
    folder = result.save(tmp_path / "run")
    again = Result.load(folder)
    assert isinstance(again, CircuitResult)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert again.page(manifest) == (folder / "report.html").read_text(encoding="utf-8")
    assert again.page() == result.page() != again.page(manifest)
    assert again == result == pickle.loads(pickle.dumps(result))
    assert len({again, result, replace(result, summary=result.summary | {"ranking": "other"})}) == 2
    written = json.loads((folder / "circuit.json").read_text())
    assert again.to_dict() == result.to_dict() == written | {"rejects": []}
    assert again.to_frame().equals(result.to_frame())
    assert again.tables["parts"].equals(result.tables["parts"])
    assert again._repr_html_() == result._repr_html_()


def test_a_result_holds_no_subject(result):
    held = pickle.dumps(result)
    assert b"isotrace.subjects" not in held
    assert b"torch" not in held


def test_a_circuit_saved_before_is_compared_with(live, result, tmp_path):
    folder = result.save(tmp_path / "before")
    name, keep = earlier_circuit(folder, live)
    assert name == "label (before)"
    assert all(torch.equal(a, b) for a, b in zip(keep, live.keep(), strict=True))
    (row,) = overlap_with(live, [folder])
    assert row["shared"] == row["n_a"] == row["n_b"] == live.summary["necessity"]["n"]
    assert row["matched"] == "layer and density"
    other = replace(result, summary=result.summary | {"parts_of": "another"}).save(tmp_path / "other")
    with pytest.raises(InputError, match="of another dictionary or mediator"):
        earlier_circuit(other, live)
    with pytest.raises(InputError, match="holds no run of isotrace circuit"):
        earlier_circuit(tmp_path, live)


def texts_of(page: str, table: str) -> list[list[str]]:
    """Cells of a table of the page, as written; spaces that do not break are spaces."""
    html = re.search(rf'<table class="plain[^"]*" id="{table}">.*?</table>', page, re.S)[0]
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", html, re.S)]
    return [[re.sub(r"<.*?>", "", cell).strip() for cell in row] for row in cells]


def as_percent(value: float) -> str:
    return f"{100 * value:.{1 if abs(value) < 0.1 else 0}f} %".replace("-", "−")


def as_share(value: float, ci) -> str:
    return f"{as_percent(value)} [{as_percent(ci[0])}, {as_percent(ci[1])}]"


def test_numbers_of_the_page_are_those_of_the_json(result):
    found, page = result.to_dict(), result.page()
    rows = {name: cells for name, *cells in texts_of(page, "chosen")[1:]}
    for i, (level, entry) in enumerate(found["chosen"].items()):
        assert found["choice"]["features"][level] == (entry and entry["n"])
        if entry is None:
            assert rows["number of features"][i] == rows["they keep, on the report part"][i] == "–"
            continue
        own = entry["neurons_chosen"]
        free, random, neurons = entry["free_running"], entry["random"], entry["neurons"]
        assert rows["number of features"][i].startswith(f"{entry['n']} (")
        assert rows["they keep, on the report part"][i] == as_share(free["sufficiency"], free["ci"])
        assert rows["matched random ones"][i] == as_share(random["mean"], random["ci"])
        assert rows["as many neurons"][i] == as_share(neurons["sufficiency"], neurons["ci"])
        expected = as_share(neurons["difference"], neurons["difference_ci"])
        assert rows["features − as many neurons"][i] == expected
        assert rows["number of neurons, by the same rule"][i] == (str(own["n"]) if own else "–")
        assert rows["they keep"][i] == (as_share(own["sufficiency"], own["ci"]) if own else "–")
        expected = as_share(own["difference"], own["difference_ci"]) if own else "–"
        assert rows["features − these neurons"][i] == expected
    assert any(found["chosen"].values()), "the fixture has a circuit to show"
    for entry in found["sweep"]:
        free = entry["free_running"]
        shown = (
            f"<td>{as_percent(free['sufficiency'])} <small>[{as_percent(free['ci'][0])}, {as_percent(free['ci'][1])}]"
        )
        assert shown in page
    gone = found["necessity"]
    assert f"the subject loses {as_share(gone['fall'], gone['ci'])}" in page.replace("\N{NO-BREAK SPACE}", " ")
    parts = texts_of(page, "parts")[1:]
    assert [[row[0], row[1]] for row in parts] == [
        [str(layer), str(feature)] for layer, feature in result.tables["parts"].select("layer", "feature").rows()
    ]
    for row in result.view["examples"]:
        total = sum(row["weights"])
        assert f"sum {number(total)}, of it" in page


def test_the_sentences_say_which_circuit_they_are_of(rotary):
    summary = made_circuit(rotary, "class").summary
    assert "5 features were chosen on the discovery part" in sentences(summary)[1].replace("\N{NO-BREAK SPACE}", " ")
    choice = summary["choice"] | {"features": {"79": 70, "90": None}}
    assert "takes 70 features" in sentences(summary | {"choice": choice})[1]
    choice = summary["choice"] | {"features": {"79": None, "90": None}}
    assert "no size was found" in sentences(summary | {"choice": choice})[1]
    for low in (0.4, None):  # of a subject at chance in some draws there is no share
        unsure = summary["task_metric"] | {"subject_ci": [low, 0.9], "chance": 0.5}
        first, second = sentences(summary | {"task_metric": unsure})
        assert "chance is 0.5" in first
        assert second == "The interval reaches down to chance, so that there is nothing a share could be of."


def test_parts_carry_the_subjects_layers_and_the_names_of_the_annotation(rotary):
    found = made_circuit(rotary, "class", layers=(1, 2))
    assert isinstance(found.features.basis.components, Features)
    first = found.parts(5).row(0, named=True)
    key = {"layer": first["layer"] + 1, "feature": first["feature"]}
    frame = pl.DataFrame([key | {"label": "ring", "f1": 0.75}], schema_overrides={"layer": pl.Int32})
    parts = named_parts(found, 5, FeatureTables(frame, pl.DataFrame()))
    assert set(parts["layer"]) <= {1, 2}
    assert parts.row(0, named=True) | key == parts.row(0, named=True)
    assert parts["label"].to_list() == ["ring"] + ["not annotated"] * 4
    assert parts["f1"].to_list() == [0.75, None, None, None, None]
    assert parts["score"].is_sorted(descending=True)


def test_expected_parts_per_layer_have_the_hypergeometric_interval(rotary):
    found = made_circuit(rotary, "class")
    size, total = found.features.basis.sizes[0], found.features.basis.n
    share = [Fraction(comb(size, k) * comb(total - size, 5 - k), comb(total, 5)) for k in range(6)]
    below = [sum(share[: k + 1]) for k in range(6)]
    expected = [next(k for k in range(6) if below[k] >= q) for q in (Fraction(25, 1000), Fraction(975, 1000))]
    assert found.summary["layers"][0]["interval"] == expected


def example(y, places=()) -> Example:
    return Example(0, "C", np.zeros(4, dtype=np.int64), "", y, places)


def test_half_of_the_drawn_are_wrong_and_the_right_ones_have_a_high_margin():
    logits = np.asarray([3.0, 2.0, 1.0, 0.5, -1.0, -2.0, 0.2, 0.1])
    examples, predicted = [example(1.0)] * 8, [np.asarray([[v]]) for v in logits]
    drawn = pick("class", examples, predicted, 4, seed=0)
    assert sorted(d.place for d in drawn if not d.right) == [4, 5]
    right = [d.place for d in drawn if d.right]
    assert len(right) == 2
    assert set(right) <= {0, 1, 2}  # the upper half of 0, 1, 2, 3, 6, 7
    assert drawn == pick("class", examples, predicted, 4, seed=0)
    assert {tuple(d.place for d in pick("class", examples, predicted, 4, seed=s)) for s in range(8)} != {
        tuple(d.place for d in drawn)
    }


def test_with_nothing_wrong_the_right_ones_fill_up():
    drawn = pick("class", [example(0.0)] * 6, [np.asarray([[-float(i + 1)]]) for i in range(6)], 4, seed=0)
    assert sorted((d.place, d.right, d.margin) for d in drawn) == [(i, True, i + 1.0) for i in (3, 4, 5)]


def test_ranked_tasks_show_what_stands_near_and_far_from_its_rank():
    y = np.arange(8.0)
    predicted = y.copy()
    predicted[[0, 7]] = predicted[[7, 0]]
    drawn = pick("regression", [example(v) for v in y], [np.asarray([[p]]) for p in predicted], 4, seed=0)
    assert sorted(d.place for d in drawn if not d.right) == [0, 7]
    assert all(d.margin == 0 for d in drawn if d.right)


def test_residue_tasks_go_by_the_order_inside_the_sequence():
    labels = np.asarray([0.0, 1.0, 0.0, 1.0])
    good, bad = np.asarray([[0.0], [1.0], [0.0], [1.0]]), np.asarray([[1.0], [0.0], [1.0], [0.0]])
    examples = [example(labels, (0, 1, 2, 3))] * 4 + [example(np.zeros(4), (0, 1, 2, 3))]
    drawn = pick("residue", examples, [good, bad, good / 2 + bad, good, good], 2, seed=0)
    assert [(d.right, d.margin) for d in drawn] == [(True, 1.0), (False, 0.0)]


def test_the_output_that_is_drawn(rotary):
    readout = Readout(rotary, "class", "balanced_accuracy")
    np.testing.assert_allclose(output_drawn(readout, example(0.0), np.asarray([[0.0, 2.0, 1.0]])), [[-0.5, 1, -0.5]])
    readout = replace(readout, kind="residue")
    mixed = output_drawn(readout, example(np.asarray([0.0, 1.0, 0.0, 0.0])), np.zeros((4, 1)))
    np.testing.assert_allclose(mixed[:, 0], [-1 / 3, 1, -1 / 3, -1 / 3])
    alike = output_drawn(readout, example(np.zeros(4)), np.zeros((4, 1)))
    np.testing.assert_allclose(alike[:, 0], 0.25)
    np.testing.assert_array_equal(
        output_drawn(replace(readout, kind="masked"), example(3.0), np.zeros((1, 2))), [[0, 1]]
    )


def test_pictures_leave_out_what_is_not_finite(rotary):
    summary = made_circuit(rotary, "class").summary
    gone = json.loads(json.dumps(summary["sweep"][0]))
    gone |= {"n": 9, "free_running": gone["free_running"] | {"sufficiency": float("nan"), "ci": [float("nan")] * 2}}
    texts = [t.text or "" for t in ET.fromstring(curve_svg(summary | {"sweep": [summary["sweep"][0], gone]})).iter()]
    assert "5 · features, free-running: 90 %" in texts
    assert not any(text.startswith("9 · features, free-running") for text in texts)
    assert "9 · best neurons: 90 %" in texts
    falls = ET.fromstring(falls_svg([("a < b", 0.5, [0.4, 0.6]), ("c", float("nan"), [float("nan")] * 2)]))
    assert sum(e.tag.endswith("rect") for e in falls.iter()) == 2  # the background and one bar


@pytest.mark.browser
def test_the_page_asks_for_nothing_and_fits_every_width(rotary, tmp_path, open_page):
    found = made_circuit(rotary, "residue", layers=(1, 2))
    found.summary["illusion"] = [{"layer": 1, "slope": float("nan"), "dormant": True}]
    overlap = [{"tasks": "<i>a</i> and b", "shared_features": 3, "ratio_ci": [0.5, 2.0]}]
    _, html = saved(found, rotary, tmp_path, overlap=overlap)
    for width in (1280, 420):
        page = open_page(html, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#overlap tbody td").all_inner_texts() == ["<i>a</i> and b", "3", "[0.500, 2]"]
        assert page.locator("#illusion tbody td").all_inner_texts() == ["1", "–", "yes"]
        assert page.locator("article").count() == 4

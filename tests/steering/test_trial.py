"""Steering from a table to a page: parts that share nothing, equal doses, designs judged, twins, all saved."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
import typer

import isotrace
import tiny
from isotrace.base.errors import InputError, IsotraceError
from isotrace.base.result import load
from isotrace.cli.steer import listed
from isotrace.datasets.annotated import read
from isotrace.domains.domain import domain_of
from isotrace.interventions import Residuals, Tokens
from isotrace.report.steer.designs import changed, similarity
from isotrace.steering import Edits, RemoveEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import DIRECTIONS
from isotrace.steering.trials import experiment
from isotrace.steering.trials import trial as trials
from isotrace.steering.trials.arm import Workshop
from isotrace.steering.trials.experiment import SHARES, placed
from isotrace.steering.trials.judge import Judge
from isotrace.steering.trials.table import worst
from isotrace.steering.trials.twins import NULLS
from isotrace.verbs.steer import settings_of

RINGS = ("c1ccccc1", "c1ccncc1", "C1CCCCC1", "c1ccoc1", "c1ccsc1", "C1CCNCC1", "C1CCOCC1", "C1CCCC1")
TAILS = ("C", "CC", "O", "CO", "N", "CN", "CCO", "CCN")
TEXTS = [f"{tail}{ring}" for ring in RINGS for tail in TAILS]
NAME = "has <b>N</b>"


@pytest.fixture(scope="module")
def table():
    return pl.DataFrame({"smiles": [*TEXTS, "C1CC"], NAME: ["N" in t.upper() for t in TEXTS] + [True]})


GIVEN = {"label": NAME, "dose": (0.02, 0.05), "layers": 1, "starts": 3, "development": 8, "designs": 2, "twins": 2,
         "twins_at": "every", "nulls": NULLS}  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), tmp_path_factory.mktemp("reader") / "bert"))


@pytest.fixture(scope="module")
def steered(relu_subject, table, reader, tmp_path_factory):
    out = tmp_path_factory.mktemp("steer") / "run"
    return isotrace.steer(relu_subject, table, reader=reader, out=out, **GIVEN), out


def test_what_is_told_has_seen_nothing(relu_subject, table):
    contrast = Contrast.read(relu_subject, table, NAME)
    parts = contrast.split(SHARES, 0)
    groups = [{*part.groups.tolist()} for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len({*contrast.groups.tolist()})


def test_each_part_sees_its_own_sequences_alone(relu_subject, table, monkeypatch):
    """The direction, the judge with the dose and the development starts, and what is told: groups of theirs."""
    contrast = Contrast.read(relu_subject, table, NAME)
    fitting, judging, told = ({e.text for e in part.examples} for part in contrast.split(SHARES, 0))
    seen: dict[str, set[str]] = {}

    def recorded(owner, name, told_by):
        plain = getattr(owner, name)

        def record(*args, **kwargs):
            for where, texts in told_by(*args).items():
                seen.setdefault(where, set()).update(texts)
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, record)

    def texts(part):
        return [e.text for e in part.examples]

    recorded(experiment, "held_fixed", lambda part, *_: {"direction": texts(part)})
    recorded(Judge, "fitted", lambda _, part, held, *__: {"judge": texts(part), "judge's check": texts(held)})
    recorded(experiment, "calibration", lambda _, part, *__: {"dose": texts(part)})
    recorded(experiment, "usual_floor", lambda _, given: {"floor": given})
    recorded(trials, "composition", lambda _, part, *__: {"composition": texts(part)})
    recorded(Workshop, "arm", lambda shop, name, *_: {name.split()[0]: shop.starts})
    isotrace.steer(relu_subject, table, **GIVEN | {"dose": 0.05, "nulls": ("random", "shuffled")})
    assert seen["direction"] == fitting
    assert seen["judge"] == seen["dose"] == seen["floor"] == judging
    assert seen["judge's check"] == seen["composition"] == told
    assert seen["told"] <= told
    assert seen["development"] <= judging
    assert {*seen} >= {"direction", "judge", "dose", "told", "development"}


@pytest.mark.parametrize(("family", "every"), [("bert", "masked"), ("gpt2", "real")])
def test_a_masked_subject_is_edited_at_what_is_about_to_be_written(tmp_path, family, every):
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model(family), tmp_path / family))
    edit = RemoveEdit(components=Residuals(), layer=0, direction=torch.ones(subject.d_model))
    edits = Edits((edit, replace(edit, where=Tokens("last"))))
    assert [e.where for e in placed(edits, subject, None).edits] == [Tokens(every), Tokens("last")]
    assert [e.where for e in placed(edits, subject, "mutable").edits] == [Tokens("mutable")] * 2


def test_starts_that_cannot_be_read_are_rejects_and_the_others_are_used(relu_subject, table, tmp_path):
    (tmp_path / "starts.csv").write_text("smiles\nCCOC\nC1CC\nCCNC\n")
    given = GIVEN | {"dose": 0.05, "starts": 3, "twins": 1, "nulls": ("random",), "start": tmp_path / "starts.csv"}
    found = isotrace.steer(relu_subject, table, **given)
    rejects = [row["text"] if "text" in row else row["input"] for row in found.tables["rejects"].to_dicts()]
    assert rejects.count("C1CC") == 2  # of the table, and of the starts
    assert {*found.tables["designs"]["from"]} == {"CCOC", "CCNC"}


def test_doses_are_what_was_asked_and_effects_those_of_the_designs(steered):
    found, _ = steered
    doses, designs = found.summary["doses"], found.tables["designs"]
    assert [row["dose"] for row in doses] == [0, 0.02, 0.05]
    assert [row["kl"] for row in doses[1:]] == pytest.approx([0.02, 0.05], rel=0.05)
    assert doses[0]["effect"] == 0
    assert {*designs["dose"]} == {0, 0.02, 0.05}
    assert designs.height == 3 * 3 * 2
    means = designs.filter(pl.col("valid")).group_by("dose", "start").agg(pl.col("judged").mean())
    plain, last = (dict(means.filter(pl.col("dose") == d).select("start", "judged").iter_rows()) for d in (0.0, 0.05))
    moved = [last[s] - plain[s] for s in last if s in plain]
    assert moved
    assert doses[2]["effect"] == pytest.approx(np.mean(moved))
    assert found.summary["claimed"] == 0.05  # all are safe here
    twins = found.tables["twins"]
    assert sorted({*twins["dose"]}) == [0.02, 0.05]
    for row in doses[1:]:
        p = []
        for null in NULLS:
            known = twins.filter((pl.col("dose") == row["dose"]) & (pl.col("null") == null))["effect"].drop_nulls()
            assert row[null] == len(known) == 2
            assert row[f"{null}_mean"] == pytest.approx(known.mean())
            p.append((1 + (known >= row["effect"]).sum()) / 3)
            assert row[f"{null}_p"] == p[-1]
        assert row["p"] == max(p)
    assert found.summary["rejects"][0]["reason"].startswith("ring closure")
    assert set(designs.filter(~pl.col("valid"))["judged"]) <= {None}


def test_it_is_saved_with_its_edits_and_read_again(steered, relu_subject):
    found, out = steered
    again = load(out)
    assert again.to_dict() == found.to_dict()
    edits = Edits.load(out / "edits", relu_subject)
    assert edits.dose is not None
    assert edits.dose.kl == pytest.approx(found.summary["dose"]["kl"])
    assert len(edits.plan()) == 1
    listed = json.loads((out / "manifest.json").read_text())["files"]
    assert {"edits/edit.json", "edits/weights.safetensors"} <= {*listed}
    page = (out / "report.html").read_text()
    assert "has &lt;b&gt;N&lt;/b&gt;" in page
    assert "<b>N</b>" not in page
    assert found.summary["verdict"].replace("'", "&#39;").replace("<b>N</b>", "&lt;b&gt;N&lt;/b&gt;") in page


def test_twins_at_the_largest_dose_alone_are_those_of_every_dose(steered, relu_subject, table, reader):
    every, _ = steered
    largest = isotrace.steer(relu_subject, table, reader=reader, **GIVEN | {"twins_at": "largest"})
    for name in ("effect", "random_mean", "shuffled_mean", "p"):
        assert [row[name] for row in largest.summary["doses"]][2] == every.summary["doses"][2][name]
    assert largest.summary["doses"][1]["p"] is None
    assert largest.summary["doses"][1]["effect"] == every.summary["doses"][1]["effect"]


def test_where_no_dose_is_safe_nothing_is_claimed(relu_subject, table, reader, monkeypatch, tmp_path):
    """Of development starts every steered design is called degenerate."""
    real = Workshop.arm

    def arm(self, name, dose, *more):
        made = real(self, name, dose, *more)
        return replace(made, degenerate=1.0) if name.startswith("development") and dose else made

    monkeypatch.setattr(Workshop, "arm", arm)
    found = isotrace.steer(relu_subject, table, reader=reader, out=tmp_path / "run", **GIVEN)
    summary = found.summary
    assert summary["verdict"].startswith("No dose is safe")
    assert (summary["claimed"], summary["composition"], summary["twins"]["effects"]) == (None, None, [])
    assert [row["safe"] for row in summary["doses"]] == [True, False, False]
    assert summary["doses"][2]["effect"] is not None  # it stays in the table
    assert Edits.load(tmp_path / "run" / "edits", relu_subject).dose is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('class="unsafe"') == 4  # in both tables
    assert "not safe</text>" in page


def test_the_page_says_what_was_checked(steered, relu_subject, table):
    found, out = steered
    page = (out / "report.html").read_text()
    assert found.summary["window"]["reader"] in page
    assert "was not checked" not in page
    assert "without length and counts of tokens" in page
    without = isotrace.steer(relu_subject, table, **GIVEN | {"twins": 0, "dose": 0.02})
    assert "perplexity under another model was not checked" in without.page()
    assert any("perplexity" in warning for warning in without.summary["warnings"])
    assert "Random, covariance, shuffled: of the same place" in page
    assert "of the same place" not in without.page()
    assert without.summary["verdict"].endswith("no random direction was tried.")
    assert without.summary["reaction"]["left"]["why"] == "there is no random twin of this dose"


def test_a_killed_trial_goes_on(steered, relu_subject, table, reader, monkeypatch, tmp_path):
    """Stopped in the middle of the twins; then nothing that was written is written again."""
    whole, made, real = steered[0], [], Workshop._designs

    def designs(self, edits):
        if len(made) == 12:
            raise KeyboardInterrupt
        made.append(edits)
        return real(self, edits)

    monkeypatch.setattr(Workshop, "_designs", designs)
    with pytest.raises(KeyboardInterrupt):
        isotrace.steer(relu_subject, table, reader=reader, out=tmp_path / "run", **GIVEN)
    made.clear()
    found = isotrace.steer(relu_subject, table, reader=reader, out=tmp_path / "run", **GIVEN)
    assert len(made) == 6 + 12 - 12  # unsteered and two doses, told and for development; six twins at two doses
    assert found.to_dict() == whole.to_dict()
    assert load(tmp_path / "run").to_dict() == whole.to_dict()
    assert not (tmp_path / "run" / ".work").exists()


@pytest.mark.parametrize("components", ["residual", "neuron", "feature"])
def test_other_components_are_steered_and_kept_too(relu_subject, table, components, tmp_path):
    given = GIVEN | {"components": components, "dose": 0.02, "twins": 1}
    if components == "feature":
        given |= {"dictionary": tiny.exact_dictionary(relu_subject), "method": "feature_clamp", "setting": ("k=1",)}
    found = isotrace.steer(relu_subject, table, out=tmp_path / "run", **given)
    assert found.summary["doses"][1]["kl"] == pytest.approx(0.02, rel=0.05)


def test_readers_that_cannot_judge_are_refused_in_a_line(relu_subject, table, reader, tmp_path):
    folder = tiny.save_subject(tiny.tiny_model("bert", "Model"), tmp_path / "headless")
    for wrong, message in (
        (relu_subject, "its own likely"),
        (str(folder), "no language-model head"),
        (tiny.load_subject(folder, domain="protein"), "same domain"),
    ):
        with pytest.raises(IsotraceError, match=message) as caught:
            isotrace.steer(relu_subject, table, reader=wrong, **GIVEN | {"dose": 1e6})
        assert "\n" not in str(caught.value)


def test_a_judge_knows_a_rule_that_fingerprints_show_and_says_how_well(relu_subject, table):
    contrast = Contrast.read(relu_subject, table, NAME)
    seen, held = contrast.split((0.5, 0.5), 1)
    judge = Judge.fitted(domain_of("molecule"), seen, held, 0, 100)
    value, low, high = judge.checked
    assert judge.metric == "auroc"
    assert value > 0.7
    assert value > Judge.fitted(domain_of("molecule"), seen.shuffled(0), held, 0, 100).checked[0]
    assert low <= value <= high
    assert judge(["CCNC", "CCOC"]).argmax() == 0


def test_what_is_new_in_a_design_is_marked(relu_subject):
    domain = domain_of("molecule")
    before, after = (read(relu_subject, domain, text)[1] for text in ("CCO", "CCNO"))
    assert changed(before, after) == [2]
    assert similarity(domain, "CCO", "CCO") == 1
    assert worst({"a": 0.1, "b": -0.7, "c": float("nan")})[0] == {"name": "b", "value": -0.7}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dose": (1e6,)}, "is not reached"),
        ({"dose": (0.0,)}, "above 0"),
        ({"layers": 9}, "has no layer 9"),
        ({"method": "wishing"}, "wishing"),
        ({"start": "C1CC"}, "start"),
        ({"components": "feature"}, "give --dictionary"),
        ({"setting": ("form",)}, "write name=value"),
        ({"setting": ("shape=plain",)}, "no setting 'shape'"),
        ({"method": "eigenshift"}, "needs the setting"),
        ({"label": "smiles"}, "classes"),
    ],
)
def test_what_cannot_be_steered_is_said_in_a_line(relu_subject, table, more, message):
    with pytest.raises(InputError, match=message) as caught:
        isotrace.steer(
            relu_subject, table, **{"label": NAME, "starts": 1, "development": 1, "designs": 1, "twins": 0} | more
        )
    assert "\n" not in str(caught.value)


def test_a_causal_subject_is_given_beginnings(tmp_path, table):
    causal = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("gpt2"), tmp_path / "gpt2"))
    given = {"label": NAME, "dose": 0.001, "starts": 1, "designs": 2, "twins": 0, "layers": 1}
    with pytest.raises(InputError, match="give starts, beginnings"):
        isotrace.steer(causal, table, **given)
    found = isotrace.steer(causal, table, start="CC", **given)
    assert found.summary["generator"] == "sample"
    assert found.tables["designs"].height == 4
    assert found.view["drawn"] == []


def test_settings_of_a_method_and_the_list_of_methods(capsys):
    assert settings_of(("k=3", "tokens=N,O", "wide=true", "share=0.5")) == {
        "k": 3, "tokens": "N,O", "wide": True, "share": 0.5,
    }  # fmt: skip
    with pytest.raises(typer.Exit):
        listed(True)
    assert {*DIRECTIONS} <= {*capsys.readouterr().out.replace("│", " ").split()}


def test_what_the_subject_makes_of_the_edit_is_told_beside_a_twin(steered):
    """A third of 64 sequences are too few for detectors; the edit is in the residual stream, before the last layer."""
    found, out = steered
    told, page = found.summary["reaction"], (out / "report.html").read_text()
    assert told["sequences"] == 0
    assert {one["own"] for one in told["noticed"].values()} == {None}
    assert "Found: too few sequences" in page
    assert None not in (told["left"]["own"], told["left"]["twin"], told["reversed"]["own"], told["reversed"]["twin"])
    assert 0 <= told["reversed"]["own"] <= 1
    assert page.count('id="reaction"') == 1

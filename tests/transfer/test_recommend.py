"""Which checkpoint to take: what is held out, what is compared, when it cannot be told."""

import numpy as np
import polars as pl
import pytest

import isotrace
import shell
import tiny
from isotrace.base.errors import InputError
from isotrace.base.result import load
from isotrace.stats.metrics import METRICS
from isotrace.transfer.judging.abstention import FOREST

CHAINS = np.random.default_rng(0)
TEXTS = sorted({"".join(CHAINS.choice([*"CCCNO"], CHAINS.integers(5, 19))) for _ in range(140)})


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recommend")
    return {name: str(tiny.save_subject(tiny.tiny_model(name), folder / name)) for name in ("bert", "esm-rotary")}


@pytest.fixture(scope="module")
def table():
    """A mean over tokens tells the share of N; fingerprints, which have no order from left to right, tell more of the
    last atom than a mean does."""
    share = np.asarray([text.count("N") / len(text) for text in TEXTS])
    rng = np.random.default_rng(1)
    found = {"smiles": TEXTS, "share": share + 0.01 * rng.normal(size=len(share)), "noise": rng.permutation(share)}
    found |= {
        "batch": [f"b{i // 3}" for i in range(len(TEXTS))],
        "last": [float("CNO".index(text[-1])) for text in TEXTS],
        "one": ["a"] * len(TEXTS),
    }
    return pl.DataFrame(found | {"polar": ["few" if x < 0.2 else "many" for x in share]})


def loaded(subjects):
    return tuple(isotrace.load_subject(folder, domain="molecule") for folder in subjects.values())


@pytest.fixture(scope="module")
def found(subjects, table):
    return isotrace.recommend(loaded(subjects), table, label="share", group="batch", bootstrap=200)


def test_scores_are_those_of_rows_held_out_and_all_stand_on_the_same(found):
    told, rows = found.summary, found.tables["predictions"]
    assert {*told["subjects"], FOREST} == {row["name"] for row in told["table"]}
    assert rows.height == told["n"]["rows"] > 100
    for row in told["table"]:
        x, one = rows[row["name"]].to_numpy()[:, None], np.ones((1, rows.height))
        assert row["score"]["value"] == pytest.approx(float(METRICS["r2"](x, rows["label"].to_numpy(), one)[0]))
        low, high = row["score"]["ci"]
        assert low < row["score"]["value"] < high
    assert [row["score"]["value"] for row in told["table"]] == sorted(
        (row["score"]["value"] for row in told["table"]), reverse=True
    )


def test_the_checkpoint_is_taken_that_leads_the_forest(found):
    told = found.summary
    assert told["choice"] == told["best"] == told["table"][0]["name"]
    assert told["lead"]["ci"][0] > 0
    assert told["verdict"].startswith(f"Take {told['best']}: R² ")
    assert f"ahead of {told['next']['name']}" in told["verdict"]
    assert any("--corpus" in said for said in told["warnings"])
    assert len(repr(found)) <= 1_000


def test_the_forest_is_taken_where_it_leads(subjects, table):
    told = isotrace.recommend(loaded(subjects), table, label="last", group="batch", bootstrap=200).summary
    assert told["choice"] == FOREST
    assert told["lead"]["ci"][1] < 0
    assert told["verdict"].startswith("Take the forest")


def test_shuffled_labels_cannot_be_told(subjects, table):
    found = isotrace.recommend(loaded(subjects), table, label="noise", group="batch", bootstrap=200)
    assert found.summary["choice"] is None
    assert found.summary["verdict"].startswith("Cannot tell: ")


def test_what_lies_outside_the_corpus_cannot_be_told(subjects, table):
    given = {"label": "share", "group": "batch", "bootstrap": 200}
    inside = isotrace.recommend(loaded(subjects), table, corpus=[*TEXTS, "C1CC"], **given).summary
    assert inside["corpus"] == {"n": len(TEXTS), "unread": 1, "median_similarity": 1.0}
    assert inside["choice"] is not None
    far = isotrace.recommend(loaded(subjects), table, corpus=["FC(F)(F)F"], **given).summary
    assert far["choice"] is None
    assert "outside the corpus" in far["verdict"]


def test_rows_that_one_checkpoint_cannot_read_are_rejects_of_all(subjects, table, found):
    more = pl.concat([table, table[:2].with_columns(smiles=pl.Series(["C1CC", "C" * 70]))])
    told = isotrace.recommend(loaded(subjects), more, label="share", group="batch", bootstrap=50).summary
    assert told["n"]["rows"] == found.summary["n"]["rows"]
    new = [row for row in told["rejects"] if row["index"] >= table.height]
    assert [row["index"] for row in new] == [table.height, table.height + 1]
    assert not new[0]["reason"].startswith("/")  # all say the same of it


@pytest.mark.parametrize(
    ("label", "rows", "message"),
    [("one", 200, "nothing to predict"), ("share", 12, "at least 20"), ("height", 200, "height")],
)
def test_what_cannot_be_compared_is_said_in_a_line(subjects, table, label, rows, message):
    with pytest.raises(InputError, match=message) as caught:
        isotrace.recommend(loaded(subjects), table[:rows], label=label)
    assert "\n" not in str(caught.value)


def test_the_command_saves_what_it_says_and_two_names_are_refused(subjects, table, tmp_path):
    table.write_csv(tmp_path / "mine.csv")
    both, out = ",".join(subjects.values()), tmp_path / "run"
    asked = ["recommend", both, "--domain", "molecule", "--data", tmp_path / "mine.csv", "--label", "polar"]
    said = shell.said(*asked, "--out", out, "--bootstrap", "50")
    again = load(out)
    assert again.summary["metric"] == "auroc"
    assert again.summary["verdict"] in " ".join(said.split())
    assert "Which checkpoint for polar" in (out / "report.html").read_text()
    with pytest.raises(InputError, match="given twice"):
        isotrace.recommend((next(iter(subjects.values())),) * 2, table, label="polar", domain="molecule")

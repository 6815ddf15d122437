"""Probes: what is planted is found, what is shuffled is not, and what was fitted is what a target reads."""

import json
import shutil
import sys

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import expit

import isotrace
import tiny
import tiny_tasks
from isotrace.base.errors import InputError, SubjectError
from isotrace.cli import main
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.probing.crossed import calibrated, crossed
from isotrace.probing.folds import folds_of
from isotrace.probing.probe import knows
from isotrace.probing.validity import nearest
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.metrics import rmse
from isotrace.subjects.probe import load_probe, pool
from isotrace.subjects.targets import parse_target

QUICK = {"baselines": False, "folds": 3, "bootstrap": 40}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("probing")


@pytest.fixture(scope="module")
def subject(root):
    return tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), root / "bert"))


def table(subject, pool_of="mean", layers=(0, 3), **columns):
    """Molecules with a number that is a linear function of what is pooled, so that a probe can read it."""
    texts = [text for text, _ in tiny_tasks.molecules()]
    batch = subject.tokenize(texts)
    states = pool(subject, batch, subject.hidden(batch.ids, batch.mask, layers), pool_of)
    states = (states - states.mean(0)) / states.std(0).clamp(min=1e-6)
    weights = torch.randn(states.shape[1], generator=torch.Generator().manual_seed(1))
    values = (states @ weights / weights.norm()).tolist()
    return pl.DataFrame({"smiles": texts, "y": values, "Compound": [f"C{i}" for i in range(len(texts))], **columns})


def test_a_number_that_is_there_is_read_and_the_target_reads_the_same(subject, root):
    rows = table(subject)
    found = isotrace.fit_probe(subject, rows, "y", layers=(0, 3), unit="log mol/l", out=root / "number", **QUICK)
    assert found.summary["performance"]["subject"]["r2"]["ci"][0] > 0.7
    assert found.summary["knows"]
    assert isotrace.load(root / "number") == found
    assert repr(found).startswith("ProbeResult")
    assert len(repr(found)) <= 1_000
    frame = found.to_frame()
    assert frame["Compound"].to_list() == rows["Compound"].to_list(), "the user's own columns travel along"
    assert frame["held_out"].all()
    assert frame["measured"].to_list() == pytest.approx(rows["y"].to_list())
    for text, error in zip(rows["smiles"][:3], frame["error"], strict=False):
        batch = subject.tokenize([text])
        target = parse_target(f"probe:{root / 'number'}", subject, batch)
        assert (target.reads, target.unit) == ((0, 3), "log mol/l")
        value = float(target.value(subject, batch, target.hidden(subject, batch)))
        # fitted on all rows, where those of the table had not seen their group: nearer to the truth
        measured = rows.filter(pl.col("smiles") == text)["y"][0]
        assert abs(value - measured) < max(0.2, abs(error) + 0.1)


@pytest.mark.parametrize("pooled", ["max", "mean+max", "cls"])
def test_every_pool_is_read(subject, root, pooled):
    rows = table(subject, pooled, (3,))
    found = isotrace.fit_probe(subject, rows, "y", layers=(3,), pool=pooled, out=root / pooled, **QUICK)
    assert found.summary["performance"]["subject"]["spearman"]["value"] > 0.8
    probe, rest = load_probe(subject, str(root / pooled))
    assert rest == []
    assert probe.weight.shape == (subject.d_model * (2 if pooled == "mean+max" else 1), 1)


def test_classes_and_their_targets(subject, root):
    rows = table(subject)
    rank = rows["y"].rank("ordinal").to_numpy()
    three = rows.with_columns(kind=pl.Series(np.array(["low", "mid", "high"])[(rank - 1) * 3 // len(rank)]))
    found = isotrace.fit_probe(subject, three, "kind", out=root / "three", **QUICK)
    assert found.summary["performance"]["subject"]["macro_auroc"]["ci"][0] > 0.5
    frame = found.to_frame()
    np.testing.assert_allclose(frame.select("p_high", "p_low", "p_mid").sum_horizontal(), 1)
    batch = subject.tokenize([rows["smiles"][0]])
    values = {}
    for text in ("high", "low", "mid", "high-low"):
        target = parse_target(f"probe:{root / 'three'}:{text}", subject, batch)
        values[text] = float(target.value(subject, batch, target.hidden(subject, batch)))
    assert values["high"] + values["low"] + values["mid"] == pytest.approx(0, abs=1e-4)
    assert values["high-low"] == pytest.approx((values["high"] - values["low"]) * 2 / 3, abs=1e-4)
    with pytest.raises(InputError, match="names no class"):
        parse_target(f"probe:{root / 'three'}", subject, batch)
    two = three.with_columns(kind=pl.Series(["no", "yes"])[(rank * 2 > len(rank)).astype(int).tolist()])
    found = isotrace.fit_probe(subject, two, "kind", out=root / "two", **QUICK)
    target = parse_target(f"probe:{root / 'two'}", subject, batch)
    assert (target.unit, found.summary["metrics"][0]) == ("log-odds", "auroc")
    other = isotrace.fit_probe(subject, two, "kind", positive="no", out=root / "no", **QUICK)
    turned = parse_target(f"probe:{root / 'no'}", subject, batch)
    value, against = (float(t.value(subject, batch, t.hidden(subject, batch))) for t in (target, turned))
    assert value == pytest.approx(-against, abs=2e-2)
    assert other.summary["performance"]["subject"]["auroc"]["value"] == pytest.approx(
        found.summary["performance"]["subject"]["auroc"]["value"], abs=1e-3
    )
    with pytest.raises(InputError, match="names one of two classes"):
        isotrace.fit_probe(subject, two, "kind", positive="maybe", **QUICK)
    with pytest.raises(InputError, match="one output"):
        parse_target(f"probe:{root / 'two'}:yes", subject, batch)


def test_labels_of_atoms_are_read_at_a_position(subject, root):
    texts = [text for text, _ in tiny_tasks.molecules()]
    labels = ["".join(str(int(a.GetSymbol() == "N")) for a in tiny_mol(text).GetAtoms()) for text in texts]
    data = pl.DataFrame({"smiles": texts, "n": labels})
    found = isotrace.fit_probe(subject, data, "n", task="residue", out=root / "atoms", **QUICK)
    assert found.summary["pool"] == "token"
    assert found.summary["performance"]["subject"]["auroc"]["value"] > 0.95, "the token itself says what it is"
    text = next(t for t in texts if "N" in t and "O" in t)
    batch, values = subject.tokenize([text]), {True: [], False: []}
    for place, token in enumerate(subject.tokens(batch.ids[0])):
        if token in ("N", "O", "C"):
            target = parse_target(f"probe:{root / 'atoms'}:{place}", subject, batch)
            values[token == "N"].append(float(target.value(subject, batch, target.hidden(subject, batch))))
    assert np.mean(values[True]) > np.mean(values[False]) + 0.5
    batch = subject.tokenize(["CCN"])
    for bad in ("", ":0", ":9", ":x"):
        with pytest.raises(InputError, match="position"):
            parse_target(f"probe:{root / 'atoms'}{bad}", subject, batch)


def tiny_mol(text):
    from rdkit import Chem

    return Chem.MolFromSmiles(text)


def false_alarms(n):
    """Of `n` shuffled labels, for how many the states of a subject are said to know them; the states, and those of an
    untrained copy, are random directions of the same hidden factors."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(120, 8))
    inputs = [factors @ rng.normal(size=(8, 20)) + 0.3 * rng.normal(size=(120, 20)) for _ in range(2)]
    groups, truth, alarms = np.repeat(np.arange(40), 3).astype(str), factors[:, 0], 0
    for seed in range(n + 1):
        y = rng.permutation(truth) if seed else truth  # the first is not shuffled
        folds = folds_of("regression", y, groups, (), 5, seed)
        draws = group_weights(groups.tolist(), 200, seed)
        scores = [rmse(crossed(x, y, "regression", folds, ()).outputs, y, draws) for x in inputs]
        gains = [other - scores[0] for other in (rmse(np.full((len(y), 1), y.mean()), y, draws), scores[1])]
        named = zip(("constant", "untrained"), gains, strict=True)
        told = {name: (float(gain[0]), *interval(gain[1:])) for name, gain in named}
        alarms += knows(told) if seed else 0
        if not seed:
            assert told["constant"][1] > 0, "what is there is seen"
    return alarms


def test_shuffled_labels_are_not_known():
    assert false_alarms(5) <= 1


@pytest.mark.nightly
def test_shuffled_labels_are_not_known_in_95_of_100():
    assert false_alarms(100) <= 5


def test_a_calibrated_probe_stays_as_it_is():
    """Outputs whose log-odds are true: slope one, no offset; a tenfold one is brought back."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4_000, 1)) * 2
    y = (rng.random(4_000) < expit(z[:, 0])).astype(float)
    weights = np.array([[1.0]]), np.array([0.0])
    for size in (1.0, 10.0):
        slope, offset = (float(part.ravel()[0]) for part in calibrated(weights, z * size, y, "classification"))
        assert slope * size == pytest.approx(1, abs=0.1)
        assert offset == pytest.approx(0, abs=0.1)


def test_the_nearest_of_another_group():
    x = MOLECULE.fingerprints(["CCO", "CCO", "CCN", "c1ccccc1"])
    found = nearest(x, np.array([0, 0, 1, 2]))
    like = (x[0] @ x[2]) / (x[0].sum() + x[2].sum() - x[0] @ x[2])
    assert found[:3] == pytest.approx([like] * 3)
    assert found[3] == 0


def test_salts_repeats_and_what_is_no_number(subject, root):
    rows = table(subject)
    texts, values = rows["smiles"].to_list(), [f"{v:.3f}" for v in rows["y"]]
    values[:6] = [">10", "5,2", "n/a", "", "inf", "12 nM"]
    texts[6], texts[7] = texts[6] + ".Cl", "no molecule"
    again = f"{float(values[8]) + 1:.3f}"
    data = pl.DataFrame({"smiles": [*texts, texts[8]], "y": [*values, again]})
    found = isotrace.fit_probe(subject, data, "y", layers=(3,), **QUICK)
    why = dict(found.tables["rejects"].select("index", "reason").rows())
    assert set(why) == {0, 1, 2, 3, 4, 5, 7, len(texts)}
    for row, part in ((0, "bound"), (1, "decimal comma"), (2, "stands for none"), (4, "finite"), (5, "unit")):
        assert part in why[row]
    assert "repeats row 8" in why[len(texts)]
    assert found.summary["cleaned"] == {
        "counter-ions stripped": 1, "rows joined with another of the same molecule": 1
    }  # fmt: skip
    assert found.summary["repeats_sd"] == pytest.approx(0.5**0.5)
    frame = found.to_frame()
    assert frame.filter(pl.col("index") == 8)["measured"][0] == pytest.approx(float(values[8]) + 0.5)
    assert frame.filter(pl.col("index") == 6)["as_given"][0] == texts[6]
    kept = isotrace.fit_probe(subject, data, "y", layers=(3,), salts="keep", **QUICK)
    assert kept.to_frame().filter(pl.col("index") == 6)["sequence"][0] == texts[6]
    comma = pl.DataFrame({"smiles": rows["smiles"], "y": [f"{v:.2f}".replace(".", ",") for v in rows["y"]]})
    read = isotrace.fit_probe(subject, comma, "y", layers=(3,), **QUICK)
    assert read.to_frame()["measured"].to_list() == pytest.approx(rows["y"].to_list(), abs=0.006)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.head(3), "too few"),
        (lambda t: t.with_columns(y=pl.lit("a")), "nothing to tell apart"),
        (lambda t: t.with_columns(y=pl.lit(1.5)), "nothing to tell apart"),
        (lambda t: t.with_columns(g=pl.lit("one")), "groups of relatives"),
        (lambda t: pl.concat([t, t.head(1).with_columns(s=pl.lit("test"))]), "are the same molecule"),
        (lambda t: t.with_columns(s=pl.lit("train")), "leaves the part"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(subject, change, said):
    rows = change(table(subject, s=["train"] * 48 + ["valid"] * 24 + ["test"] * 24, g=[str(i) for i in range(96)]))
    names = (
        {"split": "s"}
        if "train" in rows["s"][:1].to_list() and said in ("are the same molecule", "leaves the part")
        else {}
    )
    with pytest.raises(InputError, match=said) as error:
        isotrace.fit_probe(subject, rows, "y", group="g", layers=(3,), **names, **QUICK)
    assert "\n" not in str(error.value)


def test_a_named_split_holds_its_test_part_out(subject):
    rows = table(subject, s=["train"] * 48 + ["valid"] * 24 + ["test"] * 24, g=[str(i) for i in range(96)])
    found = isotrace.fit_probe(subject, rows, "y", split="s", group="g", layers=(3,), **QUICK)
    assert found.to_frame().filter(pl.col("held_out"))["s"].unique().to_list() == ["test"]
    assert found.summary["n"]["held_out"] == 24


@pytest.mark.parametrize("layers", [(4,), (-1,), (1, 1), ()])
def test_layers_that_are_not_there(subject, layers):
    with pytest.raises(InputError, match="hidden states"):
        isotrace.fit_probe(subject, table(subject), "y", layers=layers, **QUICK)


def test_a_probe_of_another_subject_and_a_damaged_one(subject, root, tmp_path):
    tiny.random_probe(subject).save(tmp_path / "probe")
    other = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path / "esm"))
    with pytest.raises(SubjectError, match="other weights"):
        load_probe(other, str(tmp_path / "probe"))
    shutil.copytree(tmp_path / "probe", tmp_path / "cut")
    (tmp_path / "cut" / "probe.safetensors").write_bytes(b"cut")
    with pytest.raises(SubjectError, match="damaged"):
        load_probe(subject, str(tmp_path / "cut"))
    about = json.loads((tmp_path / "probe" / "probe.json").read_text())
    for wrong in ({"format_version": 3}, {"layers": [0, 1]}, {"more": 1}):
        (tmp_path / "cut" / "probe.json").write_text(json.dumps(about | wrong))
        shutil.copy(tmp_path / "probe" / "probe.safetensors", tmp_path / "cut")
        with pytest.raises(SubjectError, match="fit the probe again"):
            load_probe(subject, str(tmp_path / "cut"))
    with pytest.raises(InputError, match="isotrace probe fits one"):
        load_probe(subject, str(tmp_path / "nothing"))


def test_from_a_csv_to_a_traced_page_in_two_commands(subject, root, tmp_path, capsys, monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["isotrace", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
            sys.exit(0)
        assert not stopped.value.code
        return capsys.readouterr().out

    dictionary = tmp_path / "clt"
    save_dictionary(tiny.random_dictionary(subject), dictionary, reference(subject), dtype=torch.float32, training={})
    table(subject).rename({"y": "logD"}).write_csv(tmp_path / "mine.csv")
    given = ("--domain", "molecule")
    asked = ["probe", str(root / "bert"), "--data", str(tmp_path / "mine.csv"), "--label", "logD", "--layers", "0,3"]
    said = run(*asked, "--out", str(tmp_path / "p"), *given)
    assert "an untrained copy" in said
    assert "subject" in said
    assert (tmp_path / "p" / "predictions.csv").read_text().startswith("index,name,sequence,logD,Compound")
    page = (tmp_path / "p" / "report.html").read_text()
    assert "Does the subject know logD?" in page
    trace = ["trace", str(root / "bert"), str(dictionary), "CCO", "--target", f"probe:{tmp_path / 'p'}", *given]
    quick = ["--max-features", "30", "--nodes", "4", "--controls", "2", "--spellings", "0", "--json"]
    target = json.loads(run(*trace, *quick))["target"]
    assert target["unit"] == "logD"
    assert target["kind"] == "probe"

"""A task decided by a planted motif: the whole search against its parts done by hand, stopped and taken up again."""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tiny
from isotrace.base.errors import InputError, RunError
from isotrace.base.runs import dumps
from isotrace.datasets.tasks import Example, batches
from isotrace.dictionaries.features import Features
from isotrace.discovery.method import METHODS
from isotrace.discovery.tasks import choice, finding, ranking
from isotrace.discovery.tasks.choice import choose, first_from, halves, kept_there
from isotrace.discovery.tasks.ranking import rank
from isotrace.discovery.tasks.readout import BATCH_TOKENS, STRENGTHS, Readout, fit_readout
from isotrace.discovery.tasks.summary import in_hindsight
from isotrace.discovery.tasks.sweep import Anchors, Judge, matched, top
from isotrace.discovery.tasks.task_circuit import TaskConfig, find_circuit, warnings
from tiny_tasks import fitted_folder, molecules, rows, task

N = len(molecules())
QUICK = {"sizes": (2, 20, 72), "n_controls": 2, "n_bootstrap": 40}
OWN = [str(i) for i in range(N)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return tiny.load_tiny(fitted_folder(tmp_path_factory.mktemp("tasks")))


@pytest.fixture(scope="module")
def exact(fitted):
    """A dictionary equal to the MLPs of the subject: its features are the neurons."""
    return tiny.exact_dictionary(fitted)


@pytest.fixture(scope="module")
def data(fitted):
    return task(fitted)


@pytest.fixture(scope="module")
def measured(fitted, exact, data, tmp_path_factory):
    """(the circuit, the folder in which its search kept what it measured)."""
    work = tmp_path_factory.mktemp("measured") / "work"
    return find_circuit(fitted, exact, data, TaskConfig(**QUICK), work=work), work


@pytest.fixture(scope="module")
def found(measured):
    return measured[0]


@pytest.fixture
def work(measured, tmp_path):
    """A copy of that folder, of one's own."""
    return shutil.copytree(measured[1], tmp_path / "work")


def final(subject, example):
    """Final hidden state `[tokens, d_model]` of one sequence by itself."""
    ids = torch.from_numpy(example.ids)[None]
    return subject.hidden(ids, torch.ones_like(ids, dtype=torch.bool))[0]


def pooled(subject, examples):
    """Its mean over what is no special token."""
    return np.stack([final(subject, e)[1:-1].mean(0).double().numpy() for e in examples])


def by_hand(found, keep, *, errors):
    """AUROC on the report part with `keep` alone (or, with errors, without it), by the mediator."""
    readout, statistics, dictionary = (
        found.readout,
        found.features.statistics,
        found.features.basis.components.dictionary,
    )
    chosen = [torch.zeros(24, dtype=torch.bool).index_fill(0, k, True) for k in keep]

    def edit(layer, values):
        own = ~chosen[layer] if errors == "keep" else chosen[layer]
        return torch.where(own[:, None], values, statistics.mean[layer][:, None])

    examples = found.data.parts["report"]
    with torch.no_grad(), Features(dictionary, errors=errors).edited(readout.subject, edit):
        predicted = pooled(readout.subject, examples) @ readout.weight.double().numpy()
    return roc_auc_score([e.y for e in examples], predicted[:, 0])


def test_every_measurement_against_the_mediator(found, data):
    summary, scores, statistics = found.summary, found.features.scores, found.features.statistics
    assert summary["task_metric"]["subject"] > 0.6
    assert summary["task_metric"]["chance"] == 0.5
    span = summary["task_metric"]["subject"] - 0.5
    for entry in summary["sweep"]:
        keep = top(found.features.basis, scores, entry["n"])
        value = by_hand(found, keep, errors="drop")
        assert entry["free_running"]["value"] == pytest.approx(value, abs=1e-9)
        assert entry["free_running"]["sufficiency"] == pytest.approx((value - 0.5) / span)
        rng = np.random.default_rng((0, 6))
        others = [by_hand(found, matched(keep, statistics, rng), errors="drop") for _ in range(2)]
        assert entry["random"]["mean"] == pytest.approx((np.mean(others) - 0.5) / span)
    none = by_hand(found, tuple(k[:0] for k in keep), errors="drop")
    assert summary["empty"]["value"] == pytest.approx(none)
    necessity = summary["necessity"]
    gone = by_hand(found, top(found.features.basis, scores, necessity["n"]), errors="keep")
    assert necessity["value"] == pytest.approx(gone)
    assert necessity["fall"] == pytest.approx((summary["task_metric"]["subject"] - gone) / span)
    parts = found.parts(20)
    assert parts["score"].to_list() == sorted(scores.tolist(), reverse=True)[:20]
    first = top(found.features.basis, scores, 20)
    assert [len(parts.filter(layer=layer)) for layer in range(3)] == [len(kept) for kept in first]
    assert summary["layers"][0]["expected"] == necessity["n"] / 3
    examples = [e for part in data.parts.values() for e in part]
    assert summary["task"]["n_groups"] == len({e.group for e in examples})


def test_with_features_equal_to_neurons_both_bases_agree(found):
    for entry in found.summary["sweep"]:
        for key in ("value", "sufficiency", "ci", "faithfulness"):
            assert entry["free_running"][key] == pytest.approx(entry["neurons"][key])
        assert entry["neurons"]["difference"] == pytest.approx(0)
    last = found.summary["sweep"][-1]
    assert last["fraction"] == 1
    for way in ("free_running", "teacher_forced"):
        assert last[way]["value"] == found.summary["task_metric"]["subject"]
        assert last[way]["ci"] == (1, 1)
    assert found.summary["area"]["features"] == found.summary["area"]["neurons"]
    assert found.summary["choice"]["features"] == found.summary["choice"]["neurons"]
    assert found.summary["in_hindsight"]["features"] == found.summary["in_hindsight"]["neurons"]


def test_the_size_is_the_first_from_which_on_every_larger_one_keeps_enough():
    sizes = [1, 2, 5, 10, 20]
    assert first_from(sizes, [0.85, 0.7, 0.79, 0.8, 0.95], 79) == 5, "1 keeps enough, 2 does not"
    assert first_from(sizes, [0.8, 0.85, 0.79, 0.8, 0.95], 79) == 1
    assert first_from(sizes, [0.8, 0.85, 0.8, 0.8, 0.78], 79) is None
    assert first_from(sizes, [0.8, 0.85, float("nan"), 0.8, 0.9], 79) == 10
    assert first_from([], [], 79) is None
    ways = ("free_running", "teacher_forced", "random", "neurons")
    entries = [{way: {"sufficiency": v, "mean": v} for way in ways} for v in (0.95, 0.5, 0.8, 0.9)]
    found = in_hindsight(sizes[:4], entries)
    assert list(found) == ["features", "teacher_forced", "random", "neurons"]
    assert all(sizes == {"79": 5, "90": 10} for sizes in found.values())


def test_the_choice_by_hand(fitted, found, data):
    """Each half of the groups is ranked on, and the other measured, by a computation of its own."""
    readout, basis, statistics = found.readout, found.features.basis, found.features.statistics
    halved = halves(readout, data, 0, lambda key, compute: compute())
    ways = set()
    for one, other in zip(halved[::2], halved[1::2], strict=True):
        ranked, judged = ({e.group for e in part} for part in (one.data.parts["discover"], one.judge.examples))
        assert (ranked, judged) == ({e.group for e in other.judge.examples},
                                    {e.group for e in other.data.parts["discover"]})  # fmt: skip
        assert not ranked & judged
        assert ranked | judged == {e.group for e in data.parts["discover"]}
        sizes = [len(half.judge.examples) for half in (one, other)]
        assert abs(sizes[0] - sizes[1]) <= max(Counter(e.group for e in data.parts["discover"]).values())
        ways.add(frozenset((frozenset(ranked), frozenset(judged))))
    assert len(ways) == len(halved) / 2 == choice.HALVINGS
    rows = []
    for half in halved:
        scores = rank("attribution_patching", basis, readout, half.data, statistics)
        own = replace(found, data=replace(data, parts=data.parts | {"report": half.judge.examples}))
        assert half.data.parts["report"] == data.parts["report"]
        x = pooled(fitted, half.judge.examples) @ readout.weight.double().numpy()
        whole = roc_auc_score([e.y for e in half.judge.examples], x[:, 0])
        rows.append([whole, *(by_hand(own, top(basis, scores, n), errors=False) for n in QUICK["sizes"])])
    span, *kept = np.sum(rows, 0) - len(rows) * 0.5
    sweep = found.summary["choice"]["sweep"]
    assert [row["n"] for row in sweep] == [*QUICK["sizes"]]
    assert [row["features"] for row in sweep] == pytest.approx([value / span for value in kept])
    assert found.summary["choice"]["n_groups"] == [len({e.group for e in half.judge.examples}) for half in halved]


def test_no_more_parts_are_chosen_than_there_are():
    @dataclass(frozen=True)
    class Known:
        basis: SimpleNamespace
        scores: float

        def best(self, judge, n, way):
            """The metric of the first n, and of its draws."""
            return [1.0 if n >= 50 else self.scores]

    judge = SimpleNamespace(chance=0.5, examples=[SimpleNamespace(group="a")])
    halved = [SimpleNamespace(judge=judge, span=0.5, noise=0.0)] * 2
    rankings = {name: (Known(SimpleNamespace(n=n), 0.0), [0.6, 0.7]) for name, n in (("many", 90), ("few", 7))}
    found = choose([5, 50], halved, rankings, lambda items, _: items)  # pyright: ignore[reportArgumentType]
    assert (found["many"]["79"], found["few"]["79"]) == (50, 7)
    assert [row["few"] for row in found["sweep"]] == pytest.approx([0.3, 1])
    assert found["n_groups"] == [1, 1]


def test_the_share_kept_is_one_over_all_halves():
    def half(span, noise=0.0):
        return SimpleNamespace(judge=SimpleNamespace(chance=0.5), span=span, noise=noise)

    def kept(*given):
        return kept_there([h for h, _ in given], [value for _, value in given])  # pyright: ignore[reportArgumentType]

    assert kept((half(0.2), 0.6), (half(0.4), 0.9)) == pytest.approx(0.5 / 0.6)
    assert kept((half(-0.1), 0.4), (half(0.4), 0.8)) == pytest.approx(0.2 / 0.3)
    assert np.isnan(kept((half(-0.3), 0.4), (half(0.1), 0.6))), "the subject is below chance"
    assert np.isnan(kept((half(0.02, 0.02), 0.52), (half(0.02, 0.03), 0.52))), "nor is rounding a share"


def test_the_rows_chosen_are_those_of_the_sweep(found):
    summary = found.summary
    assert summary["choice"]["features"]["79"] is not None
    assert summary["necessity"]["n"] in (summary["choice"]["features"]["79"], 2)
    for level, n in summary["choice"]["features"].items():
        chosen = summary["chosen"][level]
        if n is None:
            assert chosen is None
            continue
        (entry,) = (entry for entry in summary["sweep"] if entry["n"] == n)
        assert {key: chosen[key] for key in entry} == entry
        other = summary["choice"]["neurons"][level]
        assert chosen["neurons_chosen"]["n"] == other
        kept = next(entry["neurons"] for entry in summary["sweep"] if entry["n"] == other)["sufficiency"]
        difference = entry["free_running"]["sufficiency"] - kept
        assert chosen["neurons_chosen"]["sufficiency"] == kept
        assert chosen["neurons_chosen"]["difference"] == pytest.approx(difference)


def turned(report):
    """The report part with its labels turned on, as far as it takes."""
    for k in range(1, len(report)):
        yield tuple(replace(e, y=r.y) for e, r in zip(report, report[k:] + report[:k], strict=True))


def test_the_report_part_is_not_seen_by_the_choice(fitted, exact, data, found):
    """Other labels, and other sequences, change every number but the sizes chosen and what they were chosen by."""
    report, others = data.parts["report"], []
    for part in (report[::2], *turned(report)):
        try:
            given = replace(data, parts=data.parts | {"report": part})
            others.append(find_circuit(fitted, exact, given, TaskConfig(**QUICK)).summary)
        except InputError:  # the subject may be at chance on labels that are not its own
            continue
        if len(others) == 3:
            break
    assert len(others) == 3
    for other in others:
        assert other["choice"] == found.summary["choice"]
        assert other["necessity"]["n"] == found.summary["necessity"]["n"]
        assert other["task_metric"]["subject"] != found.summary["task_metric"]["subject"]
        assert other["sweep"][0]["free_running"]["value"] != found.summary["sweep"][0]["free_running"]["value"]


def test_a_discovery_part_that_cannot_be_halved_chooses_nothing(fitted, exact, data):
    alike = tuple(replace(e, group="one") for e in data.parts["discover"])
    given = replace(data, parts=data.parts | {"discover": alike})
    summary = find_circuit(fitted, exact, given, TaskConfig(**QUICK)).summary
    assert summary["choice"]["sweep"] == []
    assert summary["chosen"] == {"79": None, "90": None}
    assert any("cannot be halved" in warning for warning in summary["warnings"])


@pytest.mark.parametrize(
    ("text", "after"), [("ranking features", 0), ("ranking neurons", 0), ("circuits", 1), ("circuits", 2)]
)
def test_a_killed_search_goes_on_to_the_same_result(fitted, exact, data, found, tmp_path, monkeypatch, text, after):
    def killed(items, what):
        for i, item in enumerate(items):
            if what.startswith(text) and i >= after:
                raise KeyboardInterrupt
            yield item

    passes, own = [], Judge.predictions
    monkeypatch.setattr(Judge, "predictions", lambda self, *a: passes.append(1) or own(self, *a))
    with pytest.raises(KeyboardInterrupt):
        find_circuit(fitted, exact, data, TaskConfig(**QUICK), work=tmp_path / "work", progress=killed)
    before = len(passes)
    again = find_circuit(fitted, exact, data, TaskConfig(**QUICK), work=tmp_path / "work")
    assert dumps(again.summary) == dumps(found.summary)
    assert torch.equal(again.features.scores, found.features.scores)
    for file in (tmp_path / "work").glob("*.npy"):
        if file.stat().st_size > 400:
            file.write_bytes(file.read_bytes()[:-50])  # as a kill while writing would leave it
            break
    total = len(passes)
    third = find_circuit(fitted, exact, data, TaskConfig(**QUICK), work=tmp_path / "work")
    assert dumps(third.summary) == dumps(found.summary)
    assert total - before < before + total  # what was measured is not measured again
    assert len(passes) - total <= 1


def test_another_setting_measures_anew(fitted, exact, found, work):
    """Nothing stored for one data set, dictionary or seed may serve another."""
    shuffled = task(fitted, seed=3)
    alone = find_circuit(fitted, exact, shuffled, TaskConfig(**QUICK, seed=3))
    shared = find_circuit(fitted, exact, shuffled, TaskConfig(**QUICK, seed=3), work=work)
    assert dumps(alone.summary) == dumps(shared.summary) != dumps(found.summary)


def test_another_dictionary_of_the_same_fingerprint_is_measured_anew(fitted, exact, data, found, work):
    """Features in another order are the same function, so that no load check sees them: their numbers are not."""
    other = tiny.exact_dictionary(fitted)
    for layer in range(fitted.n_layers):
        order = torch.arange(other.config.n_features).flip(0)
        other.W_enc[layer].data = other.W_enc[layer][:, order]
        other.b_enc[layer].data, other.W_dec[layer].data = other.b_enc[layer][order], other.W_dec[layer][order]
    assert other.fingerprint() == pytest.approx(exact.fingerprint(), rel=1e-4)
    shared = find_circuit(fitted, other, data, TaskConfig(**QUICK), work=work)
    alone = find_circuit(fitted, other, data, TaskConfig(**QUICK))
    assert torch.equal(shared.features.scores, alone.features.scores)
    assert dumps(shared.summary) == dumps(alone.summary)
    assert shared.summary["parts_of"] != found.summary["parts_of"]
    assert not torch.equal(shared.features.scores, found.features.scores)


@pytest.mark.parametrize("step", ["ranking", "method"])
def test_scores_of_changed_code_are_not_used_again(fitted, exact, data, found, work, monkeypatch, step):
    monkeypatch.setattr(ranking, "rank", lambda *args: -rank(*args))  # the code changes …
    stale = find_circuit(fitted, exact, data, TaskConfig(**QUICK), work=work)
    assert torch.equal(stale.features.scores, found.features.scores)
    if step == "ranking":  # … and says so
        monkeypatch.setattr(ranking, "CACHE", ranking.CACHE + 1)
    else:
        raised = replace(METHODS["attribution_patching"], cache=2)
        monkeypatch.setattr(finding, "METHODS", {"attribution_patching": raised})
    again = find_circuit(fitted, exact, data, TaskConfig(**QUICK), work=work)
    assert torch.equal(again.features.scores, -found.features.scores)


def test_a_folder_with_other_files_is_refused(fitted, exact, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        find_circuit(fitted, exact, data, TaskConfig(**QUICK), work=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_shuffled_labels_leave_nothing_to_keep(fitted, exact):
    """Either the subject is at chance, which is an error, or its interval reaches chance, and no share is given."""
    rng, said, reaches = np.random.default_rng(0), [], []
    for _ in range(6):
        labels = rng.permutation([str(int(m)) for _, m in molecules()]).tolist()
        shuffled = task(fitted, rows(labels, mine=OWN), group="mine")
        config = TaskConfig(**QUICK | {"sizes": (5,)})
        try:
            with np.errstate(divide="ignore", invalid="ignore"):  # see the test of a draw at chance
                summary = find_circuit(fitted, exact, shuffled, config).summary
            reaches.append(summary["task_metric"]["subject_ci"][0])
            if reaches[-1] <= 0.5:
                assert summary["chosen"] == {"79": None, "90": None}
                assert np.isnan(
                    [summary["sweep"][0]["free_running"]["sufficiency"], summary["necessity"]["fall"]]
                ).all()
        except InputError as error:
            said.append(str(error))
    assert len(said) >= 2
    assert all("no better than chance" in text for text in said)
    assert sum(low > 0.5 for low in reaches) <= 1
    assert any(low <= 0.5 for low in reaches)


def test_a_draw_in_which_the_subject_is_at_chance_has_no_share():
    """It leaves no warning behind, and no interval."""
    anchors = Anchors(np.array([0.8, 0.5, 0.7]), np.array([0.6, 0.5, 0.5]), 0.5, 1e-9)
    found = anchors.summary(np.array([0.7, 0.6, 0.6]))
    assert found["sufficiency"] == pytest.approx(2 / 3)
    assert np.isnan(found["ci"]).all()


def test_a_share_of_no_more_than_rounding_is_undefined():
    """Of a subject at chance but for the last digits, and of one that does what it does without any feature."""
    anchors = Anchors(np.array([0.5 + 1e-12, 0.8, 0.8]), np.array([0.5, 0.8, 0.8 - 1e-12]), 0.5, 1e-9)
    value = np.array([0.6, 0.7, 0.7])
    for share in (anchors.kept, anchors.fall):
        assert np.isnan(share(value)).tolist() == [True, False, False]
    assert np.isnan(anchors.faithful(value)).all()


def test_rounding_of_the_metric_is_measured(fitted, data):
    """What other batches change, and no less than sums in float64 leave."""
    readout = fit_readout(fitted, data, None, 0)
    judge = Judge.of(readout, "report", data.parts["report"], 20, 0, lambda key, compute: compute())
    whole = judge.subject()
    other = judge.draws(judge.predictions(lambda b: fitted.hidden(b.ids, b.mask), BATCH_TOKENS // 3))
    assert judge.noise(whole) >= np.abs(other - whole).max()
    assert 1e-16 < judge.noise(whole) < 0.05
    assert judge.noise(whole + 0.1) == pytest.approx(0.1 + np.abs(other - whole).max(), abs=0.05)


def test_sizes_that_do_not_exist(fitted, exact, data):
    with pytest.raises(InputError, match="a circuit of 73 features was asked for, and there are 72"):
        find_circuit(fitted, exact, data, TaskConfig(**QUICK | {"sizes": (5, 73)}))
    with pytest.raises(InputError):
        find_circuit(fitted, exact, data, TaskConfig(**QUICK | {"sizes": (0, 5)}))


@pytest.mark.parametrize("kind", ["class", "classes", "regression"])
def test_the_probe_is_that_of_scikit_learn(fitted, kind):
    labels = {"class": None, "classes": ["abc"[i % 3] for i in range(N)],
              "regression": [f"{len(t) + 0.5}" for t, _ in molecules()]}[kind]  # fmt: skip
    data = task(fitted, rows(labels, mine=OWN), group="mine")
    readout = fit_readout(fitted, data, None, 0)
    x, y = (pooled(fitted, data.parts["fit"]), [e.y for e in data.parts["fit"]])
    models = [Ridge(alpha=s) for s in STRENGTHS["regression"]] if kind == "regression" else [
        LogisticRegression(C=s, max_iter=2_000) for s in STRENGTHS["class"]]  # fmt: skip
    judge = Judge.of(readout, "report", data.parts["report"], 20, 0, lambda key, compute: compute())
    predicted = judge.predictions(lambda batch: fitted.hidden(batch.ids, batch.mask))
    candidates = []
    for model in models:
        probe = make_pipeline(StandardScaler(), model).fit(x, y)
        given = pooled(fitted, data.parts["report"])
        candidates.append(probe.predict(given) if kind == "regression" else probe.decision_function(given))
    errors = [np.abs(predicted - c.reshape(predicted.shape)).max() for c in candidates]
    assert min(errors) < 2e-3 * np.abs(predicted).max()
    assert readout.chance(judge.y) == {"class": 0.5, "classes": 0.5, "regression": 0.0}[kind]
    c = readout.coefficients(data.parts["report"])
    assert np.abs(c.sum(0)).max() < 1e-12, "a constant added to all outputs changes nothing"
    if kind != "classes":
        expected = np.cov(predicted[:, 0], scipy.stats.zscore(judge.y), ddof=0)[0, 1]
        assert (c * predicted).sum() == pytest.approx(expected)


def test_tasks_of_the_head_by_hand(fitted, exact):
    """Masked atoms: hits of the true token. Chance: always to name what is masked most often in `fit`."""
    table = rows([str(1 + i % 3) for i in range(N)], mine=OWN)
    data = task(fitted, table, kind="masked", group="mine")
    hits = []
    for e in data.parts["report"]:
        hits.append(int(fitted.head(final(fitted, e))[e.places[0]].argmax()) == e.y)
    names, counts = np.unique([e.y for e in data.parts["fit"]], return_counts=True)
    chance = np.mean([e.y == names[counts.argmax()] for e in data.parts["report"]])
    readout = fit_readout(fitted, data, None, 0)
    judge = Judge.of(readout, "report", data.parts["report"], 20, 0, lambda key, compute: compute())
    assert judge.subject()[0] == pytest.approx(np.mean(hits))
    assert judge.chance == pytest.approx(chance)


@pytest.mark.parametrize("name", ["esm-rotary", "gpt2"])
def test_mutation_effects_by_hand(folders, name):
    """Σ over the mutated places of logit(after) − logit(before), read one place earlier from a causal subject."""
    subject, swaps = tiny.load_tiny(folders[name]), (((1, 5, 6),), ((2, 7, 5), (3, 5, 8)), ((4, 6, 7),))
    texts = ["CNOCC", "OCCN", "CCCNCC"]
    examples = [
        Example(i, text, subject.tokenize([text]).ids[0].numpy(), text, float(i), tuple(p for p, _, _ in s), s)
        for i, (text, s) in enumerate(zip(texts, swaps, strict=True))
    ]
    ((_, batch),) = batches(examples, 1_000, subject)
    readout = Readout(subject, "mutation", "spearman")
    found = readout.outputs(examples, batch, subject.hidden(batch.ids, batch.mask))
    for row, example in zip(found, examples, strict=True):
        logits, shift = subject.head(final(subject, example)), int(name == "gpt2")
        expected = sum(logits[p - shift, after] - logits[p - shift, before] for p, before, after in example.swaps)
        assert float(row) == pytest.approx(float(expected), abs=1e-4)


def test_residue_task(fitted, exact):
    """Is this atom a halogen? The token says so; AUROC over atoms, bootstrap over groups."""
    marks = []
    for text, _ in molecules():
        tokens = fitted.tokens(fitted.tokenize([text]).ids[0])
        marks.append("".join(str(int(t in ("Br", "Cl"))) for t in tokens if t.isalpha()))
    data = task(fitted, rows(marks))
    found = find_circuit(fitted, exact, data, TaskConfig(**QUICK | {"sizes": (5, 72)}))
    metric, last = found.summary["task_metric"], found.summary["sweep"][-1]
    assert found.summary["task"]["kind"] == "residue"
    assert metric["subject"] > 0.95
    assert last["free_running"]["sufficiency"] == pytest.approx(1)
    x = torch.cat([final(fitted, e)[[*e.places]] for e in data.parts["report"]])
    y = np.concatenate([e.y for e in data.parts["report"]])
    assert metric["subject"] == pytest.approx(roc_auc_score(y, (x @ found.readout.weight)[:, 0]))


def test_the_head_of_a_fine_tuned_subject_is_not_what_is_read(found, tmp_path):
    assert found.readout.caveat is None
    labels = {"id2label": {0: "inactive", 1: "active"}}
    tuned = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert", "ForSequenceClassification", **labels), tmp_path))
    settings = TaskConfig(**QUICK | {"sizes": (2,)})
    told = find_circuit(tuned, tiny.exact_dictionary(tuned), task(tuned), settings).summary["warnings"][0]
    assert "not the subject's own head: --target class:LABEL, output:NAME reads" in told


def test_warnings_tell_what_the_numbers_hide():
    entry = {"n": 5, "fraction": 1.0, "free_running": {"sufficiency": 0.75, "ci": [0.6, 0.9]},
             "random": {"mean": 0.5, "ci": [0.4, 0.7]}, "neurons": {"ci": [0.1, 0.5]}}  # fmt: skip
    summary = {"empty": {"sufficiency": 0.4}, "sweep": [entry], "chosen": {"79": entry}, "mediator": "feature",
               "choice": {"sweep": [{"n": 5, "features": 0.8}]},
               "task": {"n_report_groups": 3}, "task_metric": {"subject_ci": [0.55, 0.8], "chance": 0.5}}  # fmt: skip
    said = " / ".join(warnings(summary))
    assert "keeps 40% of the metric" in said
    assert "all features together keep 75%" in said
    assert "has 3 groups" in said
    assert "not above chance" not in said
    assert "5 features were chosen to keep 79 % and keep 75% on the report part" in said
    assert "overlaps that of random circuits" in said
    assert "does not beat as many neurons" not in said
    assert "no circuit keeps 79 %" in " / ".join(warnings(summary | {"chosen": {"79": None}}))
    assert "cannot be halved" in " / ".join(warnings(summary | {"choice": {"sweep": []}}))
    unsure = warnings(summary | {"task_metric": {"subject_ci": [0.45, 0.8], "chance": 0.5}})
    assert "not above chance beyond its interval, so that no share of it is given" in unsure[0]
    assert not any("79 %" in text for text in unsure)

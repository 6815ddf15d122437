"""The circuit tells difficulty where it decides it, and nothing else does; steps are counted as by hand."""

import math

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.interventions.components import mean_values
from isotrace.interventions.edges import Edges, component_graph
from isotrace.studies.difficulty import circuit_difficulty as study
from isotrace.studies.difficulty.circuit_difficulty import (
    Samples,
    anchors,
    depths,
    difficulty,
    edge_values,
    flipped,
    jaccard,
    judgement,
    largest,
    measured,
    path_lengths,
    step_rows,
    steps_to_flip,
    verdict,
)
from isotrace.studies.worlds.planted_weights import Weights

SIMPLE = ("confidence", "margin")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """N is carried by head 0 of layer 0 and makes S likely, O by head 1 and makes F likely; MLP 1 serves both."""
    w = Weights([*(f"token {t}" for t in "CNOSF"), "saw N", "saw O", "answer S", "answer F"])
    for head, answer in zip("NO", "SF", strict=True):
        w.head(0, [], [(f"token {head}", f"saw {head}", 8.0)])
        w.neuron(1, {f"saw {head}": 10.0}, 0.0, f"answer {answer}", length=10.0)
    return w.load(tmp_path_factory.mktemp("two"))


def samples(values: np.ndarray, steps: np.ndarray, seed: int) -> Samples:
    """Confidence has nothing to do with the steps."""
    rng = np.random.default_rng(seed)
    return Samples(values, steps, {name: rng.random(len(steps)) for name in SIMPLE})


def by_name(graph, pool: Samples, judged: Samples, n_edges: int, n_anchor: int):
    rows = judgement(graph, pool, judged, (n_edges,), n_anchor, 0)[0]
    return rows, {row["predictor"]: row for row in rows}


def test_the_circuit_of_a_hand_written_subject_tells_which_samples_are_hard(world):
    """Those that need head 1 take 40 steps, the others 4."""
    graph, reference = component_graph(world), mean_values(world, Edges(), [world.tokenize(["CCCCC"])])
    texts = [f"{'F' if hard else 'S'}C{'O' if hard else 'N'}{'C' * n}" for n in range(1, 4) for hard in (0, 1)]
    values = np.stack([edge_values(world, text, 1, reference) for text in texts])
    edges = largest(values, 3)
    for row, hard in zip(edges, (0, 1) * 3, strict=True):
        head = f"head 0.{hard}"
        assert {graph.name(e) for e in np.flatnonzero(row)} == {
            f"embedding → {head}", f"{head} → mlp 1", "mlp 1 → output"
        }  # fmt: skip
    np.testing.assert_allclose(depths(graph, edges), (0 + 1 + 3) / 3)
    np.testing.assert_array_equal(path_lengths(graph, edges), 3)
    steps = np.array([4.0, 40.0] * 3)
    np.testing.assert_allclose(difficulty(edges, *anchors(edges, steps, 3)), [0.1, 0.9] * 3)  # they share one of five
    pool, judged = samples(values, steps, 0), samples(np.tile(values, (8, 1)), np.tile(steps, 8), 1)
    told = by_name(graph, pool, judged, 3, 3)[1]
    assert told["CUD"]["spearman"] == pytest.approx(1)
    assert abs(told["confidence"]["spearman"]) < 0.3
    assert told["CUD"]["gain_ci"][0] > 0.5
    assert math.isnan(told["mean depth"]["spearman"]), "the two circuits are equally deep"


def test_more_of_the_hard_circuit_is_harder_and_nulls_tell_nothing(world, monkeypatch):
    """A share of the edges is of one circuit, the rest of another; steps grow with the share, or do not."""
    monkeypatch.setattr(study, "N_EDGES", 20)
    graph, rng = component_graph(world), np.random.default_rng(0)
    n = len(graph.edges)
    order = rng.permutation(n)
    circuits = order[:20], order[20:40]

    def made(n_samples: int, informs: bool, seed: int) -> Samples:
        values, share = np.zeros((n_samples, n)), rng.random(n_samples)
        for row, k in zip(values, np.round(20 * share).astype(int), strict=True):
            row[rng.permutation(circuits[0])[:k]] = -1.0
            row[rng.permutation(circuits[1])[: 20 - k]] = 1.0
        return samples(values, 100 * (share if informs else rng.random(n_samples)), seed)

    pool, judged, blind = made(60, True, 1), made(80, True, 2), made(80, False, 3)
    rows, told = by_name(graph, pool, judged, 20, 20)
    assert told["CUD"]["spearman_ci"][0] > 0.95
    assert told["CUD"]["partial_ci"][0] > 0.95
    for name in ("CUD of random edges", "CUD of shuffled anchors"):
        low, high = told[name]["spearman_ci"]
        assert low < 0 < high
        assert abs(told[name]["spearman"]) < 0.5
    assert told["CUD of random edges"]["spearman_ci"][1] < told["CUD"]["spearman_ci"][0]
    assert "CUD is better" in verdict(rows)
    blind.simple["confidence"][:] = blind.steps
    rows, told = by_name(graph, pool, blind, 20, 20)
    low, high = told["CUD"]["spearman_ci"]
    assert low < 0 < high
    assert told["confidence"]["spearman"] == pytest.approx(1)
    assert "confidence is better" in verdict(rows)


def test_cud_by_hand():
    easy, hard, both = (np.array(x, dtype=bool) for x in ([1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 1, 0, 0]))
    found = difficulty(np.stack([hard, easy, both, both ^ True]), easy, hard)
    np.testing.assert_allclose(found, [1, 0, 0.5, 0.5])
    empty = np.zeros(5, dtype=bool)
    assert difficulty(both[None], empty, both)[0] == 1
    assert math.isnan(jaccard(empty, empty))
    rng = np.random.default_rng(0)
    sets = rng.random((200, 30)) < 0.3
    drawn = difficulty(sets, sets[0], sets[1])
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    np.testing.assert_allclose(drawn[:2].sum(), 1)
    rows = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    found = anchors(rows, np.array([1, 2, math.inf, math.inf]), 2)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 1, 1]])
    with pytest.raises(InputError, match="half"):
        anchors(rows, np.arange(4.0), 3)
    np.testing.assert_array_equal(largest(np.array([[0.1, -3.0, 2.0]]), 2), [[0, 1, 1]])
    with pytest.raises(InputError, match="at most all"):
        largest(np.ones((1, 3)), 4)


def test_paths_by_hand(world):
    """embedding → mlp 0 → output and embedding → output: (2 + 1) / 2 edges. What leads nowhere does not count."""
    graph = component_graph(world)
    names = [graph.name(e) for e in range(len(graph.edges))]
    chosen = ["embedding → mlp 0", "mlp 0 → output", "embedding → output", "embedding → head 2.0"]
    edges = np.isin(names, chosen)[None]
    assert path_lengths(graph, edges)[0] == 1.5
    assert depths(graph, edges)[0] == (0 + 3 + 3 + 2) / 4
    assert math.isnan(path_lengths(graph, np.isin(names, chosen[1:2])[None])[0])


@pytest.mark.parametrize(("margin", "rate"), [(0.5, 0.01), (2.0, 0.02), (3.0, 0.5)])
def test_steps_of_a_logistic_model(margin, rate):
    """m → m − rate · |x|² / (1 + exp m), whose flow reaches 0 at (m + exp m − 1) / (rate · |x|²)."""
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weight = (margin * x / (x @ x)).requires_grad_(True)
    found = steps_to_flip(lambda: torch.stack([x @ weight, torch.zeros((), dtype=x.dtype)]), [weight], rate, 5_000)
    by_hand, m = 0, margin
    while m >= 0:
        m -= rate * 5.25 / (1 + math.exp(m))
        by_hand += 1
    assert found == by_hand
    flow = (margin + math.exp(margin) - 1) / (rate * 5.25)
    assert flow <= found
    if rate < 0.1:
        assert found < 1.05 * flow + 1
    again = (margin * x / (x @ x)).requires_grad_(True)
    short = steps_to_flip(lambda: torch.stack([x @ again, torch.zeros((), dtype=x.dtype)]), [again], rate, by_hand - 1)
    assert math.isinf(short)


def test_a_prediction_is_edited_on_a_copy(tmp_path, monkeypatch):
    """As the optimizer of torch does it on all weights, and the subject stays as it was."""
    monkeypatch.setattr(study, "RATE", 1e-4)
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path))
    batch = subject.prepare_prediction(subject.tokenize(["CC(=O)NCCO"]), 3)[0]
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    found = flipped(subject, batch, 3, 200)
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    model = tiny.tiny_model("esm-rotary").eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, maximize=True)
    logits = lambda: model(input_ids=batch.ids).logits[0, 3]  # noqa: E731
    said, steps = logits().argmax(), 0
    while logits().argmax() == said:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits()[None], said[None]).backward()
        optimizer.step()
        steps += 1
    assert 1 < steps < 200
    assert found == steps
    assert math.isinf(flipped(subject, batch, 3, steps - 1))


def test_samples_are_tokens_predicted_right(world):
    texts = ["SCNC", "FCOC", "CCCC", "SCNCC"]
    counts = study.counted(world, texts)
    assert counts[(world.token_id("S"),)] == 2
    reference = mean_values(world, Edges(), [world.tokenize(["CCCCC"])])
    found = measured(world, texts, reference, counts, 2, 0)
    assert len(found.steps) == 3, "a text of C alone says nothing of C"
    np.testing.assert_array_equal(found.simple["token frequency"], [2, 1, 2])
    np.testing.assert_array_equal(found.simple["fragment frequency"], [2, 1, 2])
    assert (found.simple["margin"] > 0).all()
    row = step_rows({"all": Samples(found.values, np.array([1.0, 3.0, math.inf]), {})})[0]
    assert (row["unflipped"], row["median"], row["upper quartile"]) == (1, 3.0, None)

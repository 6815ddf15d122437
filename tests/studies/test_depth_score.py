"""Depth is exactly 0 where the last blocks do nothing, and detection finds what is planted and nothing else."""

import math

import numpy as np
import pytest
import torch

import tiny
from isotrace.studies.difficulty.depth_score import SIMPLE, Read, detection_rows, divergence, read

TEXT = "CC(=O)NCCO"


def subject_of(folder, idle: int):
    """Four layers, the last `idle` of which write nothing."""
    model = tiny.tiny_model("esm-rotary", num_hidden_layers=4)
    for block in model.esm.encoder.layer[4 - idle :]:
        for linear in (block.attention.output.dense, block.output.dense):
            linear.weight.data.zero_()
            linear.bias.data.zero_()
    return tiny.load_tiny(tiny.save_subject(model, folder))


def test_depth_is_zero_where_the_last_quarter_is_the_identity(tmp_path):
    idle, busy = (subject_of(tmp_path / str(n), n) for n in (1, 0))
    sites = [1, 3, 5]
    shallow, deep = (read(subject, subject.tokenize([TEXT]), sites) for subject in (idle, busy))
    assert (shallow.depth == 0).all()
    assert (shallow.early > 0).all()
    assert (deep.depth > 0).all()
    whole = subject_of(tmp_path / "4", 4)
    nothing = read(whole, whole.tokenize([TEXT]), sites)
    assert (nothing.depth == 0).all()
    assert (nothing.early == 0).all()


def test_the_divergence_is_between_zero_and_ln_2():
    a, b = torch.eye(2).double()
    assert float(divergence(a, b)) == pytest.approx(math.log(2))
    assert float(divergence(a, a)) == 0
    p = torch.tensor([0.5, 0.5]).double()
    middle = 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    assert float(divergence(a, p)) == pytest.approx(-middle - 0.5 * math.log(2))


def planted(informs: bool) -> list[Read]:
    """Errors are deep, or depth has nothing to do with them; certainty never has."""
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        wrong = rng.random(10) < 0.2
        depth = rng.random(10) * 0.1 + 0.2 * (wrong & informs)
        found.append(Read(depth, rng.random(10), rng.random(10), rng.uniform(0.6, 1, 10), ~wrong))
    return found


@pytest.mark.parametrize("informs", [True, False])
def test_detection_finds_depth_only_where_it_tells(informs):
    rows = {row["predictors"]: row for row in detection_rows(planted(informs), 0)}
    low, high = rows["depth score"]["auroc_ci"]
    assert (low > 0.95) if informs else (low < 0.56 and high > 0.44)
    assert (rows["depth score"]["gain_ci"][0] > 0) == informs
    assert rows["entropy and max-probability"]["gain"] == 0
    low, high = rows["depth score, shuffled labels"]["auroc_ci"]
    assert low < 0.5 < high
    assert {*SIMPLE} < {*rows}


def test_few_errors_say_nothing():
    sure = [Read(*np.full((4, 5), 0.9), np.ones(5, dtype=bool))]
    assert "fewer" in detection_rows(sure, 0)[0]["reason"]

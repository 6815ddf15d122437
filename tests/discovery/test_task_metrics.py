"""Shares of a task metric, and their intervals."""

import numpy as np
import pytest

from isotrace.discovery.tasks.sweep import Anchors, pooled


def test_shares_relative_to_chance_and_to_nothing_kept():
    subject, empty, circuit = (np.array([v, v]) for v in (0.9, 0.6, 0.7))
    anchors = Anchors(subject, empty, 0.5, 1e-9)
    found = anchors.summary(circuit)
    assert found["value"] == 0.7
    assert found["sufficiency"] == pytest.approx(0.5)
    assert found["faithfulness"] == pytest.approx(1 / 3)
    assert anchors.fall(circuit) == pytest.approx([0.5, 0.5])
    assert anchors.summary(np.array([0.4, np.nan]))["sufficiency"] == pytest.approx(-0.25)
    assert np.isnan(anchors.summary(np.array([0.4, np.nan]))["ci"]).all()


def test_the_interval_of_random_circuits_draws_both_circuits_and_groups():
    same = [np.array([0.5, 0.4, 0.5, 0.6])] * 3
    assert pooled(same, 0)["ci"] == pytest.approx(np.quantile([0.4, 0.5, 0.6], [0.025, 0.975]).tolist())
    spread = [np.full(500, value) for value in (0.0, 1.0)]
    found = pooled(spread, 0)
    assert found["mean"] == 0.5
    assert found["ci"] == (0.0, 1.0)
    assert found["sd"] == pytest.approx(0.5**0.5)
    assert found["n"] == 2

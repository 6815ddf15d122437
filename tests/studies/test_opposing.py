"""The two planted groups are found, and nothing is confirmed where they do not oppose each other."""

import numpy as np
import pytest

from isotrace.studies.learning.opposing import GROUP, RATE, SAMPLES, STEPS, opposing, recovered, trained, world


@pytest.mark.parametrize("seed", range(3))
def test_two_groups_of_half_a_percent_are_recovered(seed):
    given = world(40.0, True, seed)
    assert [(given.group == side).mean() for side in (1, -1)] == [GROUP, GROUP]
    found = opposing(given, seed)
    assert min(recovered(given, found)) > 0.95
    assert found.cosine < -0.5
    assert found.rarer >= 0.95
    assert len(found.spikes) >= 10


@pytest.mark.parametrize(("token", "opposite"), [(30.0, False), (0.0, True)])
def test_nothing_is_recovered_without_opposition(token, opposite):
    areas = []
    for seed in range(3):
        given = world(token, opposite, seed)
        areas.append(min(recovered(given, opposing(given, seed))))
    assert np.mean(areas) < 0.9


def test_losses_are_those_of_the_weights():
    given = world(3.0, True, 0)
    losses, weights = trained(given)
    assert losses.shape == (STEPS + 1, SAMPLES)
    assert losses[0] == pytest.approx(np.log(2))
    p = 1 / (1 + np.exp(-given.x @ weights[1]))
    assert losses[1] == pytest.approx(-np.log(np.where(given.y == 1, p, 1 - p)))
    assert weights[1] == pytest.approx(-RATE * given.x.T @ (0.5 - given.y) / SAMPLES)

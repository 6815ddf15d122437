"""Maps of parameter space, planted."""

import numpy as np
import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.transfer.curvature.loss import laid_out
from isotrace.transfer.curvature.maps import classical_scaling, parameter_map, projected, unit_blocks

BLOCKS = laid_out([("embeddings", (30, 40), 0), ("weight", (20, 40), 0), ("bias", (20,), 0)])
P = 30 * 40 + 20 * 40 + 20


@pytest.fixture(scope="module")
def ends():
    """(start, six ends): two tasks pull in two directions, three seeds each, the embeddings with by far most of it."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(P, generator=generator)
    pulls = torch.randn(2, P, generator=generator)
    noise = torch.randn(6, P, generator=generator)
    updates = torch.repeat_interleave(pulls, 3, 0) + 0.2 * noise
    updates[:, : 30 * 40] *= 50
    return start, start + 0.01 * updates


def mapped(ends, **settings):
    names = [f"{task} {seed}" for task in "ab" for seed in range(3)]
    start, last = ends
    return parameter_map(names, start, last, BLOCKS, settings.pop("runs", ["one"] * 6), **settings)


@pytest.mark.parametrize("width", [None, 4_096])
def test_tasks_come_apart(ends, width):
    found = mapped(ends, width=width)
    assert found.shares[0] > 0.8
    first = np.sign(found.places[:, 0])
    assert (first[:3] == first[0]).all()
    assert (first[3:] == -first[0]).all()
    side = np.sign(found.scaled[:, 0])
    assert (side[:3] == -side[3]).all()
    assert found.cosines[:3, :3].min() > 0.9
    assert abs(found.cosines[:3, 3:]).max() < 0.2


def test_axes_are_directions_in_parameter_space(ends):
    """The first parts the two tasks."""
    found, last = mapped(ends), ends[1]
    apart = (last[:3].mean(0) - last[3:].mean(0)).double()
    cosine = float(found.axes[0] @ apart / apart.norm())
    assert abs(cosine) > 0.95
    assert torch.allclose(found.axes.norm(dim=1), torch.ones(2).double())


def test_norms_are_those_of_the_updates(ends):
    found, (start, last) = mapped(ends), ends
    assert found.norms[0] == pytest.approx(float((last[0] - start).norm() / start.norm()), rel=1e-5)
    first = BLOCKS[0].of(last[0] - start).norm() / BLOCKS[0].of(start).norm()
    assert found.block_norms[0, 0] == pytest.approx(float(first), rel=1e-5)
    units = unit_blocks(last - start, BLOCKS)
    assert [float(block.of(units)[0].norm()) for block in BLOCKS] == pytest.approx([1, 1, 1])


def test_a_projection_keeps_angles():
    vectors = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(1))
    vectors[1] += vectors[0]
    small = projected(vectors, 4_096, 0)
    assert torch.equal(small[:1], projected(vectors[:1], 4_096, 0))  # whatever else is projected
    exact, found = (torch.corrcoef(v.double()) for v in (vectors, small))
    assert float((exact - found).abs().max()) < 4 / 4_096**0.5


def test_scaling_finds_points_from_their_distances():
    points = np.random.default_rng(0).normal(size=(7, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    found = classical_scaling(distances, 2)
    assert np.allclose(np.linalg.norm(found[:, None] - found, axis=-1), distances)


def test_separate_pretraining_runs_are_not_mapped_together(ends):
    runs = ["one"] * 3 + ["two"] * 3
    with pytest.raises(InputError, match="permuted"):
        mapped(ends, runs=runs)
    assert mapped(ends, runs=runs, matched="units by their activations").matched == "units by their activations"
    start, last = ends
    with pytest.raises(InputError, match="where it started"):
        parameter_map(["a", "b"], start, torch.stack([start, last[0]]), BLOCKS, ["one"] * 2)
    with pytest.raises(InputError, match="two ends"):
        parameter_map(["a"], start, last[:1], BLOCKS, ["one"])

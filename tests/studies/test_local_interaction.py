"""The local interaction basis does not see how a cut is mixed, and counts what is read; degeneracy by hand."""

import numpy as np
import pytest

from isotrace.studies.learning.local_interaction import (
    alike,
    degeneracy,
    edges,
    local_basis,
    moment,
    principal,
    within,
)

N, D = 400, 10


def relu_net(rng, w):
    """Activations `[n, d]` and Jacobians `[n, out, d]` of relu(f w), w `[d, out]`."""
    f = rng.standard_normal((N, len(w))) * (1 + np.arange(len(w))) + 0.3
    active = (f @ w > 0).astype(float)
    return f, active[:, :, None] * w.T


def mixed(f, jacobians, t):
    return f @ t, jacobians @ np.linalg.inv(t).T


def test_mixing_a_cut_changes_signs_alone():
    rng = np.random.default_rng(0)
    f, j = relu_net(rng, rng.standard_normal((D, 8)))
    t = rng.standard_normal((D, D))
    seen = []
    for case in ((f, j), mixed(f, j, t)):
        basis = local_basis(case[0], moment(case[1]))
        seen.append(((case[0] - basis.mean) @ basis.forward, principal(case[0]).read))
    (plain, pca), (other, pca_mixed) = seen
    assert np.abs(np.abs(plain) - np.abs(other)).max() < 1e-9 * np.abs(plain).max()
    assert not np.allclose(pca, pca_mixed, rtol=0.1), "principal components do see it"


def test_as_many_directions_are_kept_as_are_read():
    rng = np.random.default_rng(1)
    f, j = relu_net(rng, rng.standard_normal((D, 6)) @ rng.standard_normal((6, 12)))
    basis = local_basis(f, moment(j))
    assert len(basis.read) == 6
    assert len(principal(f).read) == D
    # what is dropped is what nobody reads
    back = basis.mean + (f - basis.mean) @ basis.first(6)
    np.testing.assert_allclose(np.einsum("nod,nd->no", j, back), np.einsum("nod,nd->no", j, f), atol=1e-9)


def test_what_varies_not_is_dropped():
    rng = np.random.default_rng(2)
    f, j = relu_net(rng, rng.standard_normal((D, D)))
    f[:, 3] = f[:, 4]
    assert len(local_basis(f, moment(j)).read) == D - 1


def test_modules_are_found_through_a_mixture():
    rng = np.random.default_rng(3)
    w = np.zeros((D, D))
    w[:5, :5], w[5:, 5:] = rng.standard_normal((2, 5, 5))
    f, j = relu_net(rng, w)
    modules, t = np.arange(D) // 5, rng.standard_normal((D, D))
    found = {}
    for name, case in (("plain", (f, j)), ("mixed", mixed(f, j, t))):
        for kind, basis in (("local", local_basis(case[0], moment(case[1]))), ("pca", principal(case[0]))):
            found[kind, name] = within(edges(case[0], case[1], basis), modules)
    assert found["local", "plain"] == pytest.approx(found["local", "mixed"], abs=1e-6)
    assert found["local", "plain"] > 0.9
    assert found["pca", "plain"] > 0.96
    assert found["pca", "mixed"] < 0.95 < found["local", "mixed"]


def test_free_directions_of_a_map_are_those_that_change_no_output():
    rng = np.random.default_rng(4)
    inputs = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 5))
    gradients = rng.standard_normal((50, 2)) @ rng.standard_normal((2, 4))
    loose, strict = degeneracy(inputs, gradients, (1e-9, 0.99))
    assert (loose.inputs, loose.gradients, loose.free) == (4, 2, 6 * 4 - 8)
    with_bias = np.concatenate([inputs, np.ones((50, 1))], 1)
    felt = np.einsum("ni,mo->nmio", with_bias, gradients).reshape(2500, 24)
    assert np.linalg.matrix_rank(felt) == 24 - loose.free
    assert strict.free > loose.free


def test_units_that_fire_together_are_one_group():
    rng = np.random.default_rng(5)
    active = rng.random((2_000, 5)) < 0.3
    active[:, 3] = active[:, 1]
    active[:, 4] = False
    assert alike(active) == [[1, 3]]

"""FOXP2: the plane of a planted shift, the window by the mean, what is written in proportion to a token's length."""

import planted
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.features import Features
from isotrace.interventions import Tokens
from isotrace.steering import SwapEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions import DIRECTIONS
from isotrace.steering.directions.units.foxp2 import plane_of, rank_of, window_of
from isotrace.studies.worlds.planted_weights import neurons_as_features


def shifted(noise, n=200, features=50, seed=0):
    """(differences of pairs, the planted plane): a shift of rank 2 within 8 of the features."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.zeros(2, features, dtype=torch.float64)
    plane[:, :8] = torch.linalg.qr(torch.randn(8, 2, generator=generator).double()).Q.T
    along = torch.randn(n, 2, generator=generator).double() + torch.tensor([2.0, 1.0])
    return along @ plane + noise * torch.randn(n, features, generator=generator), plane


def test_a_shift_of_rank_two_in_eight_features_is_found_as_its_plane():
    differences, wanted = shifted(0.1)
    plane = plane_of(differences, seed=0)
    assert len(plane.axes) == 2
    cosines = torch.linalg.svdvals(plane.axes @ wanted.T)
    assert float(torch.rad2deg(torch.arccos(cosines.clamp(max=1)).max())) < 5
    assert plane.mass > 0.85
    assert plane.stability > 0.99
    noise = plane_of(shifted(0.1)[0] - shifted(0.0)[0], seed=0)
    assert noise.stability < 0.8
    assert noise.mass < 0.5


def test_the_rank_is_the_smaller_of_entropy_and_drop():
    exact = torch.linalg.svdvals(shifted(0.0)[0])
    assert rank_of(exact) == 2
    assert rank_of(torch.tensor([3.0])) == 1
    assert rank_of(torch.tensor([10.0, 1.0, 0.001])) == 2  # ⌈exp 0.06⌉, and the drop behind the second is the largest
    assert rank_of(torch.tensor([10.0, 0.1, 0.05])) == 1
    assert rank_of(torch.cat([torch.ones(20), torch.tensor([1e-3])])) == 12
    with pytest.raises(InputError, match="alike"):
        rank_of(torch.zeros(3))


def test_a_window_is_not_chosen_for_its_length():
    scores = [0.1, 0.1, 0.2, 0.9, 0.8, 0.9, 0.2, 0.1]
    assert [*window_of(scores)] == [3, 4, 5]
    sums = {range(a, a + w): sum(scores[a : a + w]) for w in range(3, 7) for a in range(len(scores) - w + 1)}
    assert len(max(sums, key=lambda window: sums[window])) == 6  # which is what the sum would take
    assert [*window_of([0.9, 0.1, 0.1, 0.9])] == [0, 1, 2, 3]
    assert [*window_of([0.1, 0.9])] == [0, 1]  # a subject of two layers


@torch.no_grad()
@pytest.mark.parametrize("length", [1.0, 7.0])
def test_what_is_decoded_is_multiplied_by_the_length_of_the_state(tmp_path, length):
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path))
    dictionary = build(configure(subject, "sae", n_features=12, activation="relu", layers=(1,)), seed=0)
    tiny.perturb(dictionary, 0.3, seed=1)
    dictionary.b_enc[0].data.zero_()
    site, batch = dictionary.config.reads[0], subject.tokenize(["CCOCN"])
    generator = torch.Generator().manual_seed(0)
    target, source = (torch.nn.functional.normalize(torch.rand(12, 1, generator=generator), dim=0) for _ in "ab")
    parts = Features(dictionary, lengths=(length,))
    edit = SwapEdit(components=parts, layer=0, direction=target, scale=2 * length, source=source, share=0.5)
    h, changed = (
        subject.run(batch, plan=plan, capture=[site]).captured[site][0, 1:-1] for plan in (None, edit.plan(0.1))
    )
    norm = h.norm(dim=-1, keepdim=True)
    z = dictionary.encode(0, h / norm).dense(12)  # without biases features grow with their input
    moved = 2 * target.T - 0.5 * (z @ source) * source.T
    torch.testing.assert_close(changed - h, 0.1 * norm * (moved @ dictionary.W_dec[0]), rtol=1e-3, atol=1e-4)
    assert float(norm.max() / norm.min()) > 1.2
    with pytest.raises(InputError, match="one a layer"):
        Features(dictionary, lengths=(1.0, 2.0))
    with pytest.raises(InputError, match="keep errors"):
        Features(dictionary, errors="drop", lengths=(1.0,))


def test_the_support_is_selective_and_lifts(tmp_path):
    subject, _, (_, neuron) = planted.subject_of(tmp_path)
    parts, contrast = Features(neurons_as_features(subject)), planted.contrast_of(subject)
    fit = DIRECTIONS["foxp2"].fit
    edit = fit(subject, contrast, components=parts, layers=(0,), tokens="F").edits[0]
    assert float(edit.direction[neuron]) > 0.9
    assert float(edit.direction[neuron + 1]) == 0  # of the other side
    assert edit.where == Tokens("masked")
    assert edit.share == 0.5
    assert edit.scale == edit.components.lengths[0] > 100
    same = fit(subject, contrast, components=parts, layers=(0,), tokens="F", length=edit.scale).edits[0]
    torch.testing.assert_close(same.direction, edit.direction)
    with pytest.raises(InputError, match="no feature tells"):  # its thresholds are those of raw states
        fit(subject, contrast, components=parts, layers=(0,), tokens="F", length=1)
    texts, labels = planted.sequences(12, 0)
    plain = Contrast.of(subject, [t.replace("S", "C") for t in texts], labels, groups=[f"g{i // 8}" for i in range(24)])
    alone = fit(subject, plain, components=parts, layers=(0,), tokens="F").edits[0]
    assert torch.nonzero(alone.direction)[:, 0].tolist() == [neuron]
    assert alone.share == 0  # no negative sequence has any of it, so there is nothing to go
    every = fit(subject, contrast, components=parts, tokens="F")
    assert {one.layer for one in every.edits} == {0, 1}
    with pytest.raises(InputError, match="give --dictionary"):
        fit(subject, contrast, tokens="F")
    with pytest.raises(InputError, match="needs the setting 'tokens'"):
        fit(subject, contrast, components=parts)
    with pytest.raises(InputError, match="no feature tells"):
        fit(subject, contrast, components=parts, layers=(2,), tokens="F")

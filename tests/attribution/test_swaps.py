"""Interchange of aligned tokens: what swapping everything gives, to the last digit, and what an estimate is worth.

A subject with weights written by hand (see `handbuilt`) says which node makes the difference before it is looked for.
"""

import pytest
import torch

import plain_models
import tiny
from handbuilt import DECOYS, READER, SOURCE, handbuilt
from isotrace.attribution.ablation import feature_values
from isotrace.attribution.pairs.swaps import swaps_of
from isotrace.dictionaries.features import Features
from isotrace.interventions.hookpoints import Neurons
from isotrace.interventions.plan import EVERYWHERE
from isotrace.subjects.targets import parse_target

A, B = "CC(=O)Nc1ccccc1", "CC(=O)Oc1ccccc1"


def prepared(subject, a=A, b=B, kind="probe"):
    """(batch of A, batch of B, target), position for position."""
    batches = [subject.tokenize([text]) for text in (a, b)]
    target = tiny.make_target(kind, subject, batches[0])
    one, other = (target.prepare(subject, batch) for batch in batches)
    return one, other, target


def value(subject, batch, target):
    with torch.no_grad():
        return float(target.value(subject, batch, target.hidden(subject, batch)))


def swapped(subject, dictionary, a, b, target, partner=None, reference="mean"):
    partner = partner or range(a.ids.shape[1])
    return swaps_of(subject, Features(dictionary), a, b, target, [*partner], feature_values(dictionary, reference))


@torch.no_grad()
def by_hooks(variant, subject, dictionary, a, b, target):
    """T(A) when every MLP's output loses what the dictionary writes of its own input and gains what it writes on B."""
    written = list(range(subject.n_layers))
    captured = subject.run(b, capture=[f"layers.{n}.mlp_in" for n in written], logits=False).captured
    config, d = dictionary.config, dictionary.config.d_out

    def writes(layer, x):
        dense = dictionary.encode(layer, x).dense(config.n_features)
        return (dense @ dictionary.W_dec[layer]).split(d, -1)

    given, own, handles = [writes(n, captured[f"layers.{n}.mlp_in"][0]) for n in written], {}, []
    for layer, (_, _, first, last) in enumerate(plain_models.blocks(variant, subject.model)):

        def read(_, args, layer=layer):
            own[layer] = writes(layer, args[0][0])

        def write(_, args, output, layer=layer):
            reached = [s for s in range(layer + 1) if layer - s < config.window]
            return output + sum(given[s][layer - s] - own[s][layer - s] for s in reached)

        handles += [first.register_forward_pre_hook(read), last.register_forward_hook(write)]
    found = value(subject, a, target)
    for handle in handles:
        handle.remove()
    return found


def test_every_feature_swapped_leaves_errors_and_embeddings(variant, subject64):
    """The output of an MLP is m(x) − m̂(x) + m̂ on B, which plain hooks write down."""
    dictionary = tiny.random_dictionary(subject64)
    one, other, target = prepared(subject64)
    swaps = swapped(subject64, dictionary, one, other, target)
    (found,) = swaps.values([EVERYWHERE])
    assert found == pytest.approx(by_hooks(variant, subject64, dictionary, one, other, target), abs=1e-10)
    assert abs(found - value(subject64, one, target)) > 1e-3
    assert abs(found - value(subject64, other, target)) > 1e-3


def test_mlp_outputs_and_embeddings_swapped_are_b(subject64):
    """With every neuron swapped MLP outputs are B's; put B's tokens in too and nothing of A is left."""
    one, other, target = prepared(subject64)
    zero = tuple(torch.zeros(size) for size in Neurons().sizes(subject64))
    swaps = swaps_of(subject64, Neurons(), one, other, target, range(one.ids.shape[1]), zero)
    assert abs(float(swaps.values([EVERYWHERE])[0]) - value(subject64, other, target)) > 1e-6
    there = swaps_of(subject64, Neurons(), one.with_ids(other.ids), other, target, range(one.ids.shape[1]), zero)
    (found,) = there.values([EVERYWHERE])
    assert found == pytest.approx(value(subject64, other, target), abs=1e-10)


def test_the_same_sequence_has_nothing_to_swap(subject64):
    dictionary = tiny.random_dictionary(subject64)
    one, _, target = prepared(subject64, A, A)
    swaps = swapped(subject64, dictionary, one, one, target)
    assert len(swaps.candidates) == 0
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(one.ids.shape[1]), torch.arange(12))
    found = swaps.values([everything, everything[::3], everything[:0]])
    torch.testing.assert_close(
        torch.as_tensor(found), torch.full((3,), value(subject64, one, target)), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("kind", ["probe", "mask"])
@pytest.mark.parametrize("name", ["bert", "esm-absolute"])  # rotary positions are rounded to float32
def test_an_estimate_is_the_effect_of_a_small_change(folders, double, kind, name):
    """(a_A − a_B) · ∂T/∂a, against a step of 10⁻⁵ of the way to B."""
    subject = tiny.in_float64(tiny.load_tiny(folders[name]))
    swaps = swapped(subject, tiny.random_dictionary(subject), *prepared(subject, kind=kind))
    step = 1e-5
    near = tuple(own + step * (other - own) for own, other in zip(swaps.own, swaps.other, strict=True))
    nudged = type(swaps)(swaps.subject, swaps.components, swaps.batch, swaps.target, swaps.own, near, swaps.candidates)
    nodes = swaps.ranked()[:: max(1, len(swaps.candidates) // 25)]
    clean, *moved = nudged.values([nodes[:0], *(node[None] for node in nodes)])
    measured = (clean - torch.as_tensor(moved)) / step
    expected = swaps.estimates(nodes)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_token_without_a_partner_stands_at_the_reference(subject64):
    """Its active features at their mean, inactive ones as they are; nothing there at zero with zero."""
    dictionary = tiny.random_dictionary(subject64)
    one, other, target = prepared(subject64)
    partner = [*range(one.ids.shape[1])]
    partner[3] = None
    swaps = swapped(subject64, dictionary, one, other, target, partner)
    for layer, (own, there) in enumerate(zip(swaps.own, swaps.other, strict=True)):
        active = own[0, 3, :, 0] > 0
        assert active.any()
        torch.testing.assert_close(there[0, 3, active, 0], dictionary.mean_activation[layer, active])
        assert not there[0, 3, ~active].any()
        on = swaps.at([3])
        assert {f for n, _, f in on.tolist() if n == layer} == set(active.nonzero()[:, 0].tolist())
    zero = swapped(subject64, dictionary, one, other, target, partner, "zero")
    assert not any(there[0, 3].any() for there in zero.other)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return handbuilt(tmp_path_factory.mktemp("planted") / "esm")


def test_the_node_that_makes_the_difference_is_found(planted):
    """Of "CNO" and "ONO" the probe reads one feature's work: SOURCE, which only C wakes."""
    subject, dictionary = planted
    a, b = (subject.tokenize([text]) for text in ("CNO", "NNO"))
    target = parse_target("probe:v", subject, a)
    swaps = swapped(subject, dictionary, a, b, target)
    own, other = value(subject, a, target), value(subject, b, target)
    assert own > 0.1
    assert other == pytest.approx(0, abs=1e-5)
    candidates = swaps.candidates.tolist()
    assert SOURCE in candidates
    assert DECOYS[0] not in candidates, "N stands in both"
    assert swaps.ranked()[:2].tolist() in ([SOURCE, READER], [READER, SOURCE])
    sets = [torch.tensor([SOURCE]), torch.tensor([node for node in candidates if node not in (SOURCE, READER)])]
    alone, others, every = swaps.values([*sets, EVERYWHERE])
    assert (alone, every) == pytest.approx((other, other), abs=1e-5)
    assert others == pytest.approx(own, rel=0.1), "the decoys move no more than the norm"

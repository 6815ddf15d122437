"""Weighted sampling gives the changed target itself, where the conditionals are of one law."""

import itertools

import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.interventions import Add, Intervention, Plan, Residuals
from isotrace.steering.sampling.conditionals import OPEN, SubjectConditionals, Table
from isotrace.steering.sampling.weighted import Anneal, Product, Rewarded, Settings, spread, systematic, weighted

V, LENGTH = 3, 4
WORLD = torch.tensor([*itertools.product(range(V), repeat=LENGTH)])
PLACE = V ** torch.arange(LENGTH - 1, -1, -1)


def joint(seed):
    logits = 1.5 * torch.randn(V**LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(0).view((V,) * LENGTH)


FIRST, SECOND = joint(1), joint(2)
REWARD = torch.randn(V**LENGTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
NOISE = torch.randn((V + 1) ** LENGTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def reward(filled):
    assert not bool((filled == OPEN).any())
    return REWARD[(filled * PLACE).sum(1)]


def estimate(filled):
    """Crude and wrong, also of what is finished: it must not show in the result."""
    return 0.3 * NOISE[((filled + 1) * (V + 1) ** torch.arange(LENGTH)).sum(1)] + 0.3 * (filled == 0).sum(1)


TARGETS = {
    "anneal": (Anneal(2.2), FIRST.flatten() ** 2.2),
    "product": (Product(Table(SECOND), 1.3, 0.9), FIRST.flatten() ** 1.3 * SECOND.flatten() ** 0.9),
    "reward": (Rewarded(reward, estimate, 1.4), FIRST.flatten() * (1.4 * REWARD).exp()),
    "tilted": (Rewarded(reward, estimate, 1.4, tilted=True), FIRST.flatten() * (1.4 * REWARD).exp()),
}


def share(particles):
    return torch.zeros(V**LENGTH, dtype=torch.float64).index_add(
        0, (particles.filled * PLACE).sum(1), particles.weights
    )


@pytest.mark.parametrize(("n", "least"), [(50_000, 0.025), (200_000, 0.012)])
@pytest.mark.parametrize("below", [0.0, 1.0])
@pytest.mark.parametrize("name", TARGETS)
def test_an_enumerated_world(name, below, n, least):
    target, unnormalised = TARGETS[name]
    order = "random" if below == 1 else "left_to_right"
    found = weighted(Table(FIRST), target, Settings(n=n, order=order, resample_below=below, seed=5))
    truth = unnormalised / unnormalised.sum()
    assert float((share(found) - truth).abs().sum() / 2) < least
    assert found.log_partition == pytest.approx(float(unnormalised.sum().log()), abs=0.02)
    assert any(found.resampled) == (below == 1)
    assert len(found.effective) == LENGTH
    assert float((FIRST.flatten() - truth).abs().sum() / 2) > 0.2  # the subject itself is elsewhere
    value = (found.filled == 1).double().sum(1)
    assert found.mean(value) == pytest.approx(float(((WORLD == 1).sum(1) * truth).sum()), abs=0.05)


def test_weights_are_needed():
    """Without them, the share of the particles is that of no target."""
    target, unnormalised = TARGETS["anneal"]
    found = weighted(Table(FIRST), target, Settings(n=50_000, resample_below=0, seed=5))
    bare = torch.bincount((found.filled * PLACE).sum(1), minlength=V**LENGTH) / 50_000
    assert float((bare - unnormalised / unnormalised.sum()).abs().sum() / 2) > 0.05


def test_it_is_resampled_below_half():
    """A reward that tells few particles apart from all others leaves few that count."""
    target = Rewarded(lambda filled: 6.0 * (filled[:, 0] == 2), lambda filled: 6.0 * (filled[:, 0] == 2), 3.0)
    found = weighted(Table(FIRST), target, Settings(n=4_000, seed=1))
    assert [ess < 2_000 for ess in found.effective[:-1]] == [*found.resampled[:-1]]
    assert any(found.resampled)
    truth = FIRST.flatten() * (18.0 * (WORLD[:, 0] == 2)).exp()
    assert float((share(found) - truth / truth.sum()).abs().sum() / 2) < 0.1


def test_the_reward_is_asked_once_a_particle():
    asked, guessed = [], []

    def counted(filled):
        asked.append(len(filled))
        return reward(filled)

    def guess(filled):
        guessed.append(len(filled))
        return estimate(filled)

    plain = weighted(Table(FIRST), Rewarded(counted, guess, 1.0), Settings(n=50))
    assert (asked, sum(guessed), plain.oracle_calls) == ([50], 1 + 4 * 50, 50)
    asked.clear()
    guessed.clear()
    tilted = weighted(Table(FIRST), Rewarded(counted, guess, 1.0, tilted=True), Settings(n=50))
    assert (asked, sum(guessed), tilted.oracle_calls) == ([50], 1 + 4 * 50 * V, 50)


def test_a_reward_of_nothing_and_a_power_of_one_change_nothing():
    plain = weighted(Table(FIRST), Anneal(1.0), Settings(n=200, seed=2))
    assert float(plain.log_weights.abs().max()) < 1e-12
    nothing = weighted(Table(FIRST), Rewarded(reward, estimate, 0.0), Settings(n=200, seed=2))
    assert torch.equal(plain.filled, nothing.filled)
    assert float(nothing.log_weights.abs().max()) < 1e-12


def test_systematic_resampling_takes_each_as_often_as_its_weight_says():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(40, generator=generator, dtype=torch.float64) ** 4
    weights /= weights.sum()
    drawn = torch.stack([torch.bincount(systematic(weights, generator), minlength=40) for _ in range(400)]).double()
    assert bool(((drawn - 40 * weights).abs() < 1).all())
    assert float((drawn.mean(0) - 40 * weights).abs().max()) < 0.12


def moved(subject):
    direction = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Plan((Intervention(Residuals(), Add(2 * direction)),))


@pytest.fixture(scope="module")
def subjects(folders):
    return {name: tiny.in_float64(tiny.load_tiny(folders[name])) for name in ("esm-rotary", "gpt2", "t5-relu")}


@pytest.mark.parametrize("name", ["esm-rotary", "gpt2", "t5-relu"])
def test_a_subject_beside_what_enumeration_gives(name, subjects):
    """Of the law that its conditionals make in one order; with another, edited subject as the second factor."""
    subject = subjects[name]
    given = {"sites": (1, 3)} if name == "esm-rotary" else {"n_new": 2}
    ours = SubjectConditionals(subject, "CCO", allowed=("C", "N", "F"), **given)
    other = SubjectConditionals(subject, "CCO", allowed=("C", "N", "F"), plan=moved(subject), **given)
    words = [subject.token_id(word) for word in ("C", "N", "F")] + ([2] if name != "esm-rotary" else [])
    pairs = [p for p in itertools.product(words, repeat=2) if p[0] != 2 or p[1] == 2]

    def law(conditionals, pair):
        first, filled = torch.tensor([[OPEN, OPEN]]), torch.tensor([[pair[0], OPEN]])
        one = conditionals.log_p(first, torch.tensor([[0]]))[0, 0, pair[0]]
        return float(one + conditionals.log_p(filled, torch.tensor([[1]]))[0, 0, pair[1]])

    truth = torch.tensor([law(ours, pair) + 0.7 * law(other, pair) for pair in pairs]).double()
    found = weighted(ours, Product(other, 1.0, 0.7), Settings(n=3_000))
    place = {pair: i for i, pair in enumerate(pairs)}
    at = torch.tensor([place[tuple(row)] for row in found.filled.tolist()])
    shares = torch.zeros(len(pairs), dtype=torch.float64).index_add(0, at, found.weights)
    assert float((shares - truth.softmax(0)).abs().sum() / 2) < 0.05
    assert found.log_partition == pytest.approx(float(truth.logsumexp(0)), abs=0.05)
    assert found.forwards == 2 * (1 + len(words))  # particles of one past share a pass
    text = ours.texts(found.filled[:1])[0]
    assert set(text) <= set("CONF")


def test_conditionals_of_a_subject_are_what_it_says(subjects):
    subject = subjects["esm-rotary"]
    ours = SubjectConditionals(subject, "CCO", sites=(1, 3), allowed=("C", "N", "O"))
    found = ours.log_p(torch.tensor([[6, OPEN], [5, OPEN]]), torch.tensor([[1], [1]]))[:, 0]
    batch = subject.tokenize(["NCO", "CCO"])
    logits = subject.run(subject.prepare_prediction(batch, 3)[0]).logits[:, 3]
    allowed = [subject.token_id(word) for word in ("C", "N", "O")]
    torch.testing.assert_close(found[:, allowed], logits[:, allowed].log_softmax(-1))
    assert float(found.exp().sum()) == pytest.approx(2)


class Contrary:
    """Two places: the first, asked last, copies the second; the second, asked last, avoids the first."""

    n_places, n_words, ordered, forwards = 2, 2, False, 0

    def log_p(self, filled, places):
        place = int(places[0, 0])
        other = filled[:, 1 - place]
        if int(other[0]) == OPEN:
            return torch.full((len(filled), 1, 2), 0.5, dtype=torch.float64).log()
        same = 0.9 if place == 0 else 0.1
        found = torch.full((len(filled), 2), 1 - same, dtype=torch.float64)
        return found.scatter(1, other[:, None], same).log()[:, None]


def test_the_order_matters_where_there_is_no_joint_law():
    settings = Settings(n=1_000, order="random")
    contrary = spread(Contrary(), Anneal(1.0), lambda filled: filled[:, 0] == filled[:, 1], range(8), settings)
    law = spread(Table(FIRST), Anneal(1.0), lambda filled: filled[:, 0] == filled[:, 1], range(8), settings)
    assert {round(value, 1) for value in contrary} == {0.1, 0.9}
    truth = float(FIRST.sum((2, 3)).diagonal().sum())
    assert law == pytest.approx([truth] * 8, abs=0.06)


def test_in_the_order_of_confidence_nothing_is_claimed(subjects):
    ours = SubjectConditionals(subjects["esm-rotary"], "CCO", sites=(1, 2, 3), allowed=("C", "N"))
    found = weighted(ours, Anneal(2.0), Settings(n=50, order="confidence"))
    assert found.order is None
    assert not bool((found.filled == OPEN).any())
    assert found.forwards > 3  # particles part ways


def test_bad_input(subjects):
    gpt2, esm = subjects["gpt2"], subjects["esm-rotary"]
    one = SubjectConditionals(gpt2, "CC", n_new=2)
    with pytest.raises(InputError, match="from left to right only"):
        weighted(one, Anneal(1.0), Settings(order="random"))
    with pytest.raises(InputError, match="same places and words"):
        weighted(one, Product(Table(FIRST)))
    with pytest.raises(InputError, match="give n_new ≥ 1"):
        SubjectConditionals(gpt2, "CC", sites=(1,))
    with pytest.raises(InputError, match="more than"):
        SubjectConditionals(gpt2, "CC", n_new=200)
    with pytest.raises(InputError, match="name sites among 1 to 2"):
        SubjectConditionals(esm, "CC", sites=(7,))
    with pytest.raises(InputError, match="no word is allowed"):
        SubjectConditionals(esm, "CC", allowed=())
    with pytest.raises(InputError, match="sums to 1"):
        Table(torch.ones(3, 3))
    with pytest.raises(InputError, match="at least 1"):
        Settings(n=0)

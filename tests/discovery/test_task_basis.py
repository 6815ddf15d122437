"""Circuits alone and subjects without them, against the mediators, the replacement model and plain NumPy."""

import numpy as np
import pytest
import torch

import tiny
import tiny_tasks
from isotrace.base.errors import InputError
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.replacement import replaced_hidden
from isotrace.discovery.methods import Problem, method_of
from isotrace.discovery.passes import Made
from isotrace.discovery.tasks import ranking
from isotrace.discovery.tasks.basis import Basis, Statistics
from isotrace.discovery.tasks.ranking import rank
from isotrace.discovery.tasks.readout import Readout, checked_metric
from isotrace.discovery.tasks.sweep import matched, sizes_on_grid, top
from isotrace.interventions import Heads, Neurons
from isotrace.stats.matching import NEIGHBOURS

TEXTS = ["CCOCC", "c1cc[nH]c1", "CC(=O)N", "CN"]
SAE = {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"}
ARCHITECTURES = {
    "crosslayer": ("crosslayer", {}),
    "windowed": ("crosslayer", {"window": 2}),
    "some layers": ("transcoder", {"layers": (0, 2)}),
    "later layers": ("crosslayer", {"layers": (1, 2)}),
    "skip": ("skip_transcoder", {}),
    "sae": ("sae", SAE),
    "standardised": ("sae", SAE | {"token_normalization": "standardize"}),
}


@pytest.fixture(params=[*ARCHITECTURES, "crosslayer on bert", "sae on bert"])
def basis(_loaded, request):
    architecture, _, variant = request.param.partition(" on ")
    subject, (name, given) = _loaded[variant or "esm-rotary"][0], ARCHITECTURES[architecture]
    return Basis(subject, Features(tiny.random_dictionary(subject, name, **given)))


def close(found, expected, batch, tolerance=2e-5):
    assert tiny.relative(found[batch.mask], expected[batch.mask]) < tolerance


def measured(basis, batch):
    return basis.statistics([batch])


@pytest.mark.every_family
def test_all_neurons_are_the_subject(subject):
    """So are all heads, and no neuron is its MLPs at their mean: something else."""
    batch = subject.tokenize(TEXTS)
    clean = subject.hidden(batch.ids, batch.mask)
    layers = tuple(range(subject.n_layers))
    for basis in (Basis(subject, Neurons(layers)), Basis(subject, Neurons(layers[-1:])), Basis(subject, Heads())):
        statistics, all_parts = measured(basis, batch), tiny_tasks.everything(basis)
        for given in (None, basis.clean(batch)):
            close(basis.kept(batch, all_parts, statistics, given), clean, batch)
        close(basis.removed(batch, tiny_tasks.nothing(basis), statistics), clean, batch)
        none = basis.kept(batch, tiny_tasks.nothing(basis), statistics)
        assert tiny.relative(none[batch.mask], clean[batch.mask]) > 1e-3
        close(basis.removed(batch, all_parts, statistics), none, batch)


@torch.no_grad()
def test_neurons_where_they_flow_are_what_their_rows_write(subject):
    batch = subject.tokenize(TEXTS)
    basis = Basis(subject, Neurons())
    statistics, keep = measured(basis, batch), tiny_tasks.random_keep(basis, 0.3)
    neurons = basis.writers
    base = neurons.base(subject, statistics.mean)

    def written(layer, x):
        change = (x - statistics.mean[layer])[..., keep[layer]]
        return neurons.finish(subject, layer, base[layer] + change @ neurons.rows(subject, layer, keep[layer]), x)

    with neurons.computed_by(subject, written):
        expected = subject.hidden(batch.ids, batch.mask)
    close(basis.kept(batch, keep, statistics), expected, batch)


def mediated(basis, batch, keep, statistics, *, errors, gone):
    """The same by the mediator: parts in `keep` (or, with `gone`, all but those) keep what they are."""
    chosen = [torch.zeros(n, dtype=torch.bool).index_fill(0, k, True) for n, k in zip(basis.sizes, keep, strict=True)]

    def edit(layer, values):
        own = ~chosen[layer] if gone else chosen[layer]
        return torch.where(own[:, None], values, statistics.mean[layer][:, None])

    with torch.no_grad(), Features(basis.components.dictionary, errors=errors).edited(basis.subject, edit):
        return basis.subject.hidden(batch.ids, batch.mask)


def test_features_against_the_mediator(basis):
    batch = basis.subject.tokenize(TEXTS)
    statistics, keep = measured(basis, batch), tiny_tasks.random_keep(basis, 0.4)
    clean = basis.subject.hidden(batch.ids, batch.mask)
    kept, removed = basis.kept(batch, keep, statistics), basis.removed(batch, keep, statistics)
    close(kept, mediated(basis, batch, keep, statistics, errors="drop", gone=False), batch)
    close(removed, mediated(basis, batch, keep, statistics, errors="keep", gone=True), batch)
    close(basis.removed(batch, tiny_tasks.nothing(basis), statistics), clean, batch)
    assert tiny.relative(removed[batch.mask], clean[batch.mask]) > 1e-3
    assert tiny.relative(kept[batch.mask], clean[batch.mask]) > 1e-3


@torch.no_grad()
def test_all_features_are_the_replacement_model(basis):
    batch = basis.subject.tokenize(TEXTS)
    statistics, all_parts, clean = measured(basis, batch), tiny_tasks.everything(basis), basis.clean(batch)
    arguments = (basis.subject, basis.components.dictionary, batch)
    close(basis.kept(batch, all_parts, statistics), replaced_hidden(*arguments, "free_running"), batch)
    forced = replaced_hidden(*arguments, "teacher_forced", list(clean))
    close(basis.kept(batch, all_parts, statistics, clean), forced, batch)


def test_teacher_forced_parts_against_the_mediator(subject):
    basis = Basis(subject, Features(tiny.random_dictionary(subject, window=2)))
    batch = subject.tokenize(TEXTS)
    statistics, keep, clean = measured(basis, batch), tiny_tasks.random_keep(basis, 0.4), basis.clean(batch)
    chosen = [torch.zeros(n, dtype=torch.bool).index_fill(0, k, True) for n, k in zip(basis.sizes, keep, strict=True)]
    edit = lambda layer, a: torch.where(chosen[layer][:, None], a, statistics.mean[layer][:, None])  # noqa: E731
    with torch.no_grad(), Features(basis.components.dictionary, errors="drop", teacher=clean).edited(subject, edit):
        expected = subject.hidden(batch.ids, batch.mask)
    found = basis.kept(batch, keep, statistics, clean)
    close(found, expected, batch)
    assert tiny.relative(found[batch.mask], basis.kept(batch, keep, statistics)[batch.mask]) > 1e-4


@torch.no_grad()
def test_passes_that_share_are_the_same_to_the_bit(basis):
    """Circuits one after the other on the same batches, empty layers and features that are never active among them."""
    subject = basis.subject
    made = Made([(np.arange(4), subject.tokenize(TEXTS)), (np.arange(2), subject.tokenize(TEXTS[:2]))])
    statistics = measured(basis, made.batches[0][1])
    statistics.mean[-1][::3] = 0
    keeps = [tiny_tasks.random_keep(basis, share, seed) for seed, share in enumerate((0.4, 0.02, 1.0))]
    for keep in (tiny_tasks.nothing(basis), *keeps):
        for _, passes in made.passes(basis, statistics):
            clean = basis.clean(passes.batch)
            for way, given in (("free_running", None), ("teacher_forced", clean)):
                expected = basis.kept(passes.batch, keep, statistics, given)
                assert torch.equal(passes.final(keep, way), expected)
            assert torch.equal(passes.final(keep, "removed"), basis.removed(passes.batch, keep, statistics))
    assert len(made.held) == 2
    given, block = made.held[basis, 1].prefix[0], subject.hookpoint("layers.0.resid_post")[0]
    whole = not basis.writers.reads(subject)[0].startswith("layers.0.mlp")
    assert given
    assert (block in given) == whole


@pytest.mark.parametrize("way", ["kept", "forced", "removed"])
def test_padding_changes_nothing(basis, way):
    batch = basis.subject.tokenize(TEXTS)
    statistics, keep = measured(basis, batch), tiny_tasks.random_keep(basis, 0.4)

    def run(given):
        if way == "removed":
            return basis.removed(given, keep, statistics)
        return basis.kept(given, keep, statistics, basis.clean(given) if way == "forced" else None)

    padded = run(batch)
    for i, text in enumerate(TEXTS):
        alone = basis.subject.tokenize([text])
        close(padded[i : i + 1, : alone.ids.shape[1]], run(alone), alone, 5e-5)


def test_statistics_are_those_of_real_tokens(basis):
    alone = [basis.subject.tokenize([text]) for text in TEXTS]
    found = measured(basis, basis.subject.tokenize(TEXTS))
    for layer, site in enumerate(basis.writers.reads(basis.subject)):
        a = torch.cat([
            basis.components.dictionary.encode(layer, basis.subject.run(b, capture=[site]).captured[site][0]).dense(12)
            for b in alone
        ])  # fmt: skip
        torch.testing.assert_close(found.mean[layer], a.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.density[layer], (a > 0).float().mean(0), rtol=0, atol=1e-6)


def regression(subject, seed=0):
    """A random probe, and the sequences with random labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randn(len(TEXTS), generator=generator).tolist()
    data = tiny_tasks.plain_task(subject, TEXTS, labels)
    weight = torch.randn(subject.d_model, 1, generator=generator)
    return data, Readout(subject, data.kind, checked_metric(data, None), weight, torch.zeros(1))


def surrogate(basis, data, readout, final_of):
    examples, total, at = data.parts["discover"], 0.0, 0
    share = readout.coefficients(examples)
    for rows, batch in data.batches("discover", 10_000, basis.subject):
        outputs = readout.outputs([examples[i] for i in rows], batch, final_of(batch)).double()
        total += float((outputs * torch.from_numpy(share[at : at + len(rows)])).sum())
        at += len(rows)
    return total


def test_shares_of_integrated_gradients_add_up(basis, monkeypatch):
    """Σ scores = S(all parts) − S(no part), in the limit of many steps."""
    data, readout = regression(basis.subject)
    statistics = basis.statistics(b for _, b in data.batches("discover", 10_000, basis.subject))
    monkeypatch.setattr(ranking, "STEPS", 40)
    scores = rank("eap_ig", basis, readout, data, statistics)
    ends = [
        surrogate(basis, data, readout, lambda b, keep=keep: basis.kept(b, keep, statistics))
        for keep in (tiny_tasks.everything(basis), tiny_tasks.nothing(basis))
    ]
    assert float(scores.sum()) == pytest.approx(ends[0] - ends[1], rel=5e-3, abs=1e-3 * float(scores.abs().sum()))


@pytest.mark.parametrize("name", ["attribution_patching", "relp"])
def test_ranking_is_the_method_on_the_mediator(basis, name):
    """Summed over sequences and tokens; batches of the ranking hold padding, the method's do not."""
    data, readout = regression(basis.subject)
    examples = data.parts["discover"]
    statistics = basis.statistics(b for _, b in data.batches("discover", 10_000, basis.subject))
    found = rank(name, basis, readout, data, statistics)
    share = torch.from_numpy(readout.coefficients(examples)).float()
    reference = tuple(m[:, None] for m in statistics.mean)
    expected = torch.zeros(basis.n)
    for i, example in enumerate(examples):
        batch = basis.subject.tokenize([example.text])
        metric = lambda b, final, i=i: (readout.outputs([examples[i]], b, final) * share[i]).sum(1)  # noqa: E731
        problem = Problem(basis.subject, Features(basis.components.dictionary, errors="drop"), batch, metric, reference)
        scores = method_of(name)(problem).over_positions()
        expected += torch.cat([s[0] for s in scores])
    assert expected.abs().max() > 1e-4
    assert tiny.relative(found.float(), expected) < 1e-4


def test_neurons_are_ranked_alike_by_both_ways(rotary):
    data, readout = regression(rotary)
    one, other = Basis(rotary, Neurons((0, 1, 2))), Basis(rotary, Neurons())
    batches = [b for _, b in data.batches("discover", 10_000, rotary)]
    found = [rank("attribution_patching", b, readout, data, b.statistics(batches)) for b in (one, other)]
    assert tiny.relative(*found) < 1e-4
    exact = rank("activation_patching", other, readout, data, other.statistics(batches))
    clean = surrogate(other, data, readout, lambda b: rotary.hidden(b.ids, b.mask))
    for part in (0, 30, 71):
        gone = other.split(torch.tensor([part]))
        without = surrogate(other, data, readout, lambda b, g=gone: other.removed(b, g, other.statistics(batches)))
        assert float(exact[part]) == pytest.approx(clean - without, abs=1e-5)


def test_unknown_rankings(rotary):
    data, readout = regression(rotary)
    for basis, name in ((Basis(rotary, Neurons((0,))), "magic"), (Basis(rotary, Heads()), "magic")):
        statistics = measured(basis, rotary.tokenize(TEXTS))
        with pytest.raises(InputError, match="magic"):
            rank(name, basis, readout, data, statistics)


def test_random_circuits_are_matched():
    density = tuple(torch.rand(400, generator=torch.Generator().manual_seed(i)) ** 4 for i in range(3))
    statistics = Statistics(density, density)
    keep = tuple(torch.randperm(400)[:n].sort().values for n in (30, 0, 150))
    rng = np.random.default_rng(0)
    drawn = [matched(keep, statistics, rng) for _ in range(20)]
    assert len({tuple(torch.cat(d).tolist()) for d in drawn}) == 20
    for found in drawn:
        for layer, (one, other) in enumerate(zip(keep, found, strict=True)):
            assert len(other.unique()) == len(one)
            assert not set(one.tolist()) & set(other.tolist())
            # sorted densities lie within the few ranks that choice among neighbours allows
            ranks = density[layer].argsort().argsort().float()
            assert (ranks[one].sort().values - ranks[other].sort().values).abs().mean() < 4 * NEIGHBOURS or not len(one)
    crowded = (torch.arange(350), *(torch.zeros(0, dtype=torch.long),) * 2)
    assert len(matched(crowded, statistics, rng)[0].unique()) == 350, "a layer without enough others lends its own"


def test_first_parts_and_sizes(rotary):
    basis = Basis(rotary, Neurons((0, 1, 2)))
    scores = torch.zeros(72, dtype=torch.float64)
    scores[[5, 30, 70]] = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    assert [k.tolist() for k in top(basis, scores, 2)] == [[], [6], [22]]
    assert [k.tolist() for k in top(basis, scores, 5)] == [[0, 1, 5], [6], [22]], "equal scores in their order"
    assert torch.equal(torch.cat(top(basis, scores, 72)), torch.arange(24).repeat(3))
    assert sizes_on_grid(72, None) == [1, 4, 7, 14, 36, 72]
    assert sizes_on_grid(10_000, None) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]
    assert sizes_on_grid(72, (5, 2, 5)) == [2, 5]

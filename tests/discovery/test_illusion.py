"""Illusions planted by hand must be flagged and true causes must not; everything against plain hooks and NumPy."""

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import Features
from isotrace.discovery.illusion import feature_illusions, illusion
from isotrace.discovery.readers import row_space
from isotrace.discovery.tasks.basis import Basis
from isotrace.interventions import Neurons
from isotrace.subjects.dispatch import hookpoints_edited

SITE = "layers.1.neuron"
OWN = ["CCOCC", "CNCCO", "OCCCN", "CCCCC", "NCOCC", "CSCCO", "OCSCC", "CCNCS"]


def unit(i, n=24):
    return torch.eye(n)[i]


@pytest.fixture(scope="module")
def planted(folders):
    return tiny.with_a_dormant_neuron(tiny.load_tiny(folders["esm-rotary"]))


@pytest.fixture(scope="module")
def pairs(planted):
    """Twice eight pairs of inputs of five atoms."""
    batches = [planted.tokenize(OWN[i:] + OWN[:i]) for i in (0, 3, 5)]
    return [(batches[0], batches[1]), (batches[1], batches[2])]


@pytest.fixture(scope="module")
def metric(planted):
    """Along what neurons 1 and 2 write."""
    direction = planted.neuron_writes(1)[0][[1, 2]].sum(0)
    return lambda batch, final: final[:, 1:-1].mean(1) @ direction


def test_the_planted_illusion_is_flagged(planted, pairs, metric):
    v = (unit(0) + unit(1)) / 2**0.5
    found = illusion(planted, SITE, v, pairs, metric)
    assert found.flagged
    assert found.read_share == pytest.approx(0.5, abs=1e-5)
    assert (found.rank, found.width, found.trivial) == (16, 24, False)
    assert found.effect["whole"][1] > 0.05
    assert found.effect["read"] == pytest.approx((0, 0, 0), abs=1e-5)
    assert found.effect["rest"] == pytest.approx((0, 0, 0), abs=1e-5)
    assert found.carried == pytest.approx((0, 0, 0), abs=1e-4)
    assert found.slope == pytest.approx((0, 0, 0), abs=1e-5)
    assert found.variance["read"] == pytest.approx(0, abs=1e-9)
    assert found.variance["rest"] == pytest.approx(2 * found.variance["whole"], rel=1e-4)
    assert found.covariance["read"] == pytest.approx(0, abs=1e-6)
    assert abs(found.covariance["rest"]) > 1e-4


def test_a_true_cause_is_not_flagged(planted, pairs, metric):
    """Nor is one that takes some of the disconnected neuron with it, which varies alike."""
    for v in (unit(2), unit(2) * 0.8 + unit(0) * 0.6):
        found = illusion(planted, SITE, v, pairs, metric)
        assert found.effect["whole"][1] > 0.05
        assert not found.flagged
        assert found.carried[1] > 0.5
        assert found.slope[1] > 0.5
    assert illusion(planted, SITE, unit(2), pairs, metric).slope == pytest.approx((1, 1, 1), abs=1e-4)


def test_what_nothing_reads_has_no_effect_and_is_no_illusion(planted, pairs, metric):
    alone = illusion(planted, SITE, unit(0), pairs, metric)
    both = illusion(planted, SITE, torch.stack([unit(0), unit(1)], 1), pairs, metric)
    for found in (alone, both):
        assert found.effect["whole"] == pytest.approx((0, 0, 0), abs=1e-5)
        assert not found.flagged
    assert alone.read_share == pytest.approx(0, abs=1e-9)
    assert np.isnan(alone.slope[0])
    assert both.read_share == pytest.approx(0.5, abs=1e-5)
    assert np.isnan(both.covariance["whole"])


@pytest.mark.parametrize("position", [-1, 3])
def test_every_number_against_hooks(planted, pairs, metric, position):
    v = torch.linalg.qr(torch.randn(24, 1, generator=torch.Generator().manual_seed(2)))[0]
    found = illusion(planted, SITE, v, pairs, metric, position=position)
    space = torch.linalg.svd(planted.neuron_writes(1)[0])[0][:, : found.rank]
    read = space @ space.T @ v
    parts = {"whole": v, "read": read / read.norm(), "rest": (v - read) / (v - read).norm()}
    numbers = {name: [] for name in (*parts, "above", "below", "gap", "tokens")}
    along, values = {name: [] for name in parts}, []
    for own, other in pairs:
        at = slice(None) if position < 0 else slice(position, position + 1)
        a, b = (planted.run(x, capture=[SITE]).captured[SITE] for x in (own, other))
        clean, corrupt = (metric(x, planted.hidden(x.ids, x.mask)) for x in (own, other))
        delta = (b - a)[:, at]
        imposed = (delta @ v)[..., 0]
        numbers["above"] += (delta @ read)[..., 0].mul(imposed).sum(1).tolist()
        numbers["below"] += (imposed**2).sum(1).mul(float(read.norm() ** 2)).tolist()
        numbers["gap"] += (clean - corrupt).abs().tolist()
        for name, part in parts.items():

            def patch(x, part=part, b=b, at=at):
                x = x.clone()
                x[:, at] += (b[:, at] - x[:, at]) @ part @ part.T
                return x

            with hookpoints_edited(planted, {SITE: patch}):
                effect = clean - metric(own, planted.hidden(own.ids, own.mask))
            numbers[name] += (effect * (clean - corrupt).sign()).tolist()
            along[name] += [((delta @ part) ** 2).sum((1, 2)), *((x[:, at] @ part).mean((1, 2)) for x in (a, b))]
        values += [clean, corrupt]
    total = {name: sum(value) for name, value in numbers.items()}
    n_tokens = 16 * (7 if position < 0 else 1)
    for name in parts:
        assert found.effect[name][0] == pytest.approx(total[name] / total["gap"], abs=1e-5)
        assert found.variance[name] == pytest.approx(float(sum(x.sum() for x in along[name][::3])) / n_tokens, rel=1e-4)
        means = torch.cat([x for i, x in enumerate(along[name]) if i % 3])
        expected = np.cov(means.numpy(), torch.cat(values).numpy())[0, 1]
        assert abs(found.covariance[name]) == pytest.approx(abs(expected), abs=1e-5)
    assert found.carried[0] == pytest.approx(total["read"] / total["whole"], rel=1e-3)
    assert found.slope[0] == pytest.approx(total["above"] / total["below"], rel=1e-4)
    for value, low, high in (*found.effect.values(), found.slope):
        assert low - 1e-6 <= value <= high + 1e-6


def test_where_all_is_read_the_split_is_trivial(rotary, metric):
    pairs = [(rotary.tokenize(OWN), rotary.tokenize(OWN[::-1]))]
    found = illusion(rotary, "layers.1.mlp_in", unit(0, 16), pairs, metric)
    assert found.trivial
    assert not found.flagged
    assert found.carried == pytest.approx((1, 1, 1), abs=1e-3)
    assert found.slope == pytest.approx((1, 1, 1), abs=1e-5)
    assert found.effect["rest"] == (0, 0, 0)


def test_refusals(planted, pairs, metric):
    with pytest.raises(InputError, match="16 entries"):
        illusion(planted, SITE, unit(0, 16), pairs, metric)
    with pytest.raises(InputError, match="not orthonormal"):
        illusion(planted, SITE, 2 * unit(2), pairs, metric)
    with pytest.raises(InputError, match="differ in length"):
        illusion(planted, SITE, unit(2), [(planted.tokenize(["CC"]), planted.tokenize(["CCO"]))], metric)
    with pytest.raises(InputError, match="three or more"):
        illusion(planted, SITE, unit(2), [(planted.tokenize(["CC"]), planted.tokenize(["CO"]))], metric)
    with pytest.raises(SubjectError, match="no hookpoint"):
        row_space(planted, "layers.1.nowhere")


def slopes_by_hand(basis, batch, keep, deviation):
    """(slope, own) of every part, from one least-squares fit each: all targets one below the other."""
    subject, writers = basis.subject, basis.writers
    captured = subject.run(batch, capture=[*writers.reads(subject), *writers.writes(subject)]).captured
    reads, writes = (
        [captured[site][batch.mask] for site in sites] for sites in (writers.reads(subject), writers.writes(subject))
    )
    active, found = [writers.encode(layer, x) for layer, x in enumerate(reads)], []
    for layer, kept in enumerate(keep):
        targets = writers.targets(layer)
        for i in kept.tolist():
            columns, moves, left = [], [], []
            for slot, t in enumerate(targets):
                total = 0
                for s in range(len(active)):
                    reached = writers.targets(s)
                    if t in reached:
                        parts = writers.rows(subject, s, slice(None)).chunk(len(reached), -1)
                        total = total + active[s] @ parts[reached.index(t)]
                w = writers.rows(subject, layer, slice(None))[i].chunk(len(targets))[slot]
                b = active[layer][:, i] * (1 if deviation is None else deviation) * w.norm()
                intercepts = torch.zeros(len(b), len(targets)).index_fill(1, torch.tensor([slot]), 1)
                columns.append(torch.cat([b[:, None], intercepts], 1))
                moves.append(writes[t] @ w / w.norm())
                left.append(moves[-1] - (writers.finish(subject, t, total, reads[t]) @ w / w.norm() - b))
            x = torch.cat(columns).double().numpy()
            found.append([np.linalg.lstsq(x, torch.cat(y).double().numpy())[0][0] for y in (moves, left)])
    return found


@pytest.mark.parametrize("architecture", ["crosslayer", "skip_transcoder", "sae", "standardised", "neurons"])
def test_slopes_against_least_squares(rotary, architecture):
    given = {"sae": {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"},
             "crosslayer": {"window": 2}, "standardised": {"token_normalization": "standardize"}}  # fmt: skip
    name = "sae" if architecture == "standardised" else architecture
    if architecture == "neurons":
        basis = Basis(rotary, Neurons((0, 2)))
    else:
        basis = Basis(rotary, Features(tiny.random_dictionary(rotary, name, k=8, **given.get(architecture, {}))))
    batch, deviation = rotary.tokenize(["CCOCC", "c1cc[nH]c1", "CC(=O)N", "NCCNC"]), None
    density = basis.statistics([batch]).density
    keep = tuple(d.argsort(descending=True, stable=True)[:2] if layer != 1 else torch.zeros(0, dtype=torch.long)
                 for layer, d in enumerate(density))  # fmt: skip
    if architecture == "standardised":
        keep = (keep[0], *(kept[:0] for kept in keep[1:]))
        site = basis.writers.reads(basis.subject)[0]
        deviation = rotary.run(batch, capture=[site]).captured[site].std(-1)[batch.mask]
    parts = [rotary.tokenize([text]) for text in batch.sequences]
    rows = feature_illusions(basis, keep, parts)
    for row, (slope, own) in zip(rows, slopes_by_hand(basis, batch, keep, deviation), strict=True):
        assert row["slope"] == pytest.approx(slope, rel=1e-3, abs=1e-4)
        assert row["own"] == pytest.approx(own, rel=1e-3, abs=1e-3)
        assert row["ci"][0] <= row["slope"] + 1e-9
        assert row["slope"] <= row["ci"][1] + 1e-9
    assert [(r["layer"], r["feature"]) for r in rows] == [(n, i) for n, kept in enumerate(keep) for i in kept.tolist()]
    whole = feature_illusions(basis, keep, [batch])
    for one, other in zip(rows, whole, strict=True):
        assert one["slope"] == pytest.approx(other["slope"], rel=1e-3, abs=1e-4)
        assert one["n_active"] == other["n_active"]
    if architecture == "neurons":
        assert [row["own"] for row in rows] == pytest.approx([1] * len(rows), abs=1e-3), (
            "they reconstruct what is written"
        )
        assert not any(row["dormant"] for row in rows)


@pytest.mark.parametrize(
    ("scale", "other", "expected"), [(1, 0, 1), (2, 0, 0.5), (-2, 0, -0.5), (1, 1, 0), (2, 1, 0), (-1, 1, 0)]
)
def test_dormant_writes_are_told_from_faithful_ones(relu_subject, scale, other, expected):
    """A neuron whose write is orthogonal to all others', and a feature in its stead that writes `scale` times as much,
    or along another direction that nothing writes."""
    subject = tiny.load_tiny(relu_subject.files.folder)
    last = subject.mlp(1)[1]
    frame = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(5)))[0]
    last.weight.data -= frame @ frame.T @ last.weight
    active = subject.run(subject.tokenize(tiny.MOLECULES), capture=[SITE], logits=False).captured[SITE]
    chosen = int(active.flatten(0, 1).var(0).argmax())
    last.weight.data[:, chosen] = frame[:, 0]
    dictionary = tiny.exact_dictionary(subject)
    dictionary.W_dec[1].data[chosen] = scale * frame[:, other]
    basis, none = Basis(subject, Features(dictionary)), torch.zeros(0, dtype=torch.long)
    batches = [subject.tokenize([text]) for text in tiny.MOLECULES]
    (row,) = feature_illusions(basis, (none, torch.tensor([chosen]), none), batches)
    for value in ("slope", "own"):
        assert row[value] == pytest.approx(expected, abs=1e-5)
    assert row["ci"] == pytest.approx([expected] * 2, abs=1e-4)
    if abs(expected - 0.5) > 0.1:  # at a half rounding decides
        assert row["dormant"] == (expected < 0.5)


def test_a_dormant_write_behind_an_active_neighbour(relu_subject):
    """`weak` is active with `strong`, writes nothing any more and is said to write the same: its slope is that of the
    neighbour, and only the error tells. The error is shared with the neighbour as far as both are active together."""
    subject = tiny.load_tiny(relu_subject.files.folder)
    first, last = subject.mlp(1)
    batch = subject.tokenize(tiny.MOLECULES)
    values = subject.run(batch, capture=[SITE], logits=False).captured[SITE][batch.mask]
    strong, weak, dead = values.var(0).argsort(descending=True)[[0, 1, -1]].tolist()
    first.weight.data[weak] = 0.5 * (first.weight[strong] + first.weight[weak])
    first.weight.data[dead], first.bias.data[dead] = 0, -1
    last.weight.data[:, weak] = 0
    dictionary = tiny.exact_dictionary(subject)
    dictionary.W_dec[1].data[weak] = dictionary.W_dec[1].data[strong]
    basis, none = Basis(subject, Features(dictionary)), torch.zeros(0, dtype=torch.long)
    parts = [subject.tokenize([text]) for text in tiny.MOLECULES]
    rows = feature_illusions(basis, (none, torch.tensor([strong, weak, dead]), none), parts)
    values = subject.run(batch, capture=[SITE], logits=False).captured[SITE][batch.mask].double()
    covariance = np.cov(values[:, [strong, weak]].T.numpy())
    true, silent, never = rows
    assert silent["slope"] > 0.5
    assert silent["own"] == pytest.approx(0, abs=1e-5)
    assert true["own"] == pytest.approx(1 - covariance[0, 1] / covariance[0, 0], abs=1e-4)
    assert never["n_active"] == 0
    assert np.isnan([never["slope"], never["own"], *never["ci"]]).all()
    assert silent["dormant"]
    assert not never["dormant"]

"""Sub-attention removes what it should, and hurts where one far key is needed."""

from typing import Any

import pytest
import torch

from isotrace.studies.learning.sub_attention import (
    RULES,
    Judged,
    Rule,
    compared,
    fresh,
    kept,
    losses,
    removable,
    sub_sampled,
    trained,
)
from isotrace.studies.worlds.planted_weights import Weights
from isotrace.subjects.dispatch import patterns_recorded

MOLECULES = ["CCOc1ccccc1", "CC(=O)N", "c1cc[nH]c1CCN", "OCCN", "CC(C)Cc1ccc(C)cc1", "O=C(O)CCCl"]
KEPT = [rule for rule in RULES if rule.kind != "dropout"]


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return fresh(tmp_path_factory.mktemp("sub"), MOLECULES, 0)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("rule", KEPT, ids=str)
def test_the_share_kept_is_exact(rule, each):
    free = torch.zeros(3, 50, dtype=torch.bool)
    free[0, 1:49] = free[1, 1:24] = free[2, 5:7] = True
    generator, n = dice(), free.sum(1)
    drawn = [kept(rule, free, generator, each) for _ in range(400)]
    counts = torch.stack([seen.sum(-1) for seen in drawn])  # [draws, rows, 1 or queries]
    wanted = rule.share * n[:, None]
    assert ((counts - wanted).abs() < 1).all(), "rounded up or down, for every query"
    assert counts.double().mean((0, 2)) == pytest.approx(wanted[:, 0].double(), abs=0.1)
    assert not any((seen & ~free[:, None]).any() for seen in drawn)
    if rule.kind == "random":  # every key as often as any other
        often = torch.stack(drawn).double().mean((0, 2))[free]
        assert often == pytest.approx(torch.full_like(often, rule.share), abs=0.1)


@pytest.mark.parametrize("rule", KEPT, ids=str)
def test_a_batch_shares_a_draw_unless_each_row_has_its_own(rule):
    free = torch.ones(4, 40, dtype=torch.bool)
    shared, own = (kept(rule, free, dice(), each) for each in (False, True))
    assert torch.equal(shared, shared[:1].expand_as(shared))
    assert len({tuple(row.flatten().tolist()) for row in own}) == 4


def test_shuffled_within_windows_keys_are_near():
    free = torch.ones(1, 200, dtype=torch.bool)
    seen = kept(Rule("near", 1 / 8), free, dice(), True)[0]
    far = (torch.arange(200)[:, None] - torch.arange(200)).abs()
    middle = slice(25, 175)  # 25 keys in a row, before they were shuffled within windows of 16
    assert far[middle][seen[middle]].max() <= 12 + 15
    assert not torch.equal(seen, kept(Rule("near", 1 / 8), free, dice(1), True)[0])


@pytest.mark.parametrize("rule", KEPT, ids=str)
def test_removed_keys_have_no_pattern_and_the_rest_sums_to_one(subject, rule):
    batch = subject.tokenize(MOLECULES)
    masked = batch.with_ids(batch.ids.masked_fill(torch.arange(batch.ids.shape[1]) == 3, subject.mask_id))
    free = removable(subject, masked)
    assert free[:, 3].all(), "a masked token may be removed"
    assert not free[:, 0].any()
    assert torch.equal(free.sum(1), batch.mask.sum(1) - 2), "<cls> and <eos> may not"
    generator, again = dice(), dice()
    with sub_sampled(subject, masked, rule, generator), patterns_recorded(subject) as seen:
        subject.hidden(masked.ids, masked.mask)
    draws = [kept(rule, free, again, False) for _ in subject.attentions]
    assert not all(torch.equal(draws[0], draw) for draw in draws), "each layer draws"
    own = torch.eye(batch.ids.shape[1], dtype=torch.bool)
    for module, draw in zip(subject.attentions, draws, strict=True):
        allowed = (draw | own | (batch.mask & ~free)[:, None])[:, None].expand_as(seen[module])
        allowed = allowed & batch.mask[:, None, None]
        assert (seen[module] == 0)[~allowed].all()
        assert (seen[module] > 0)[allowed & batch.mask[:, None, :, None]].all()
        assert torch.allclose(seen[module].sum(-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("kind", ["random", "near", "dropout"])
def test_all_of_it_is_the_dense_pass(subject, kind):
    batch = subject.tokenize(MOLECULES)
    dense = subject.hidden(batch.ids, batch.mask)
    for share, same in ((1.0, True), (1 / 4, False)):
        with sub_sampled(subject, batch, Rule(kind, share), dice(), each=True):
            found = subject.hidden(batch.ids, batch.mask)
        assert torch.allclose(found, dense, atol=1e-6) == same


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_flow_through_what_is_left(subject, rule):
    batch = subject.tokenize(MOLECULES)
    subject.model.zero_grad()
    with sub_sampled(subject, batch, rule, dice()):
        subject.head(subject.hidden(batch.ids, batch.mask))[batch.mask].logsumexp(-1).sum().backward()
    for layer in subject.model.esm.encoder.layer:
        own = layer.attention.self
        for part in (own.query, own.key, own.value):
            assert part.weight.grad.isfinite().all()
            assert part.weight.grad.abs().max() > 0


def test_dropout_keeps_the_mean_of_the_pattern(subject):
    rule = Rule("dropout", 1 / 4)
    batch = subject.tokenize(["CC(C)Cc1ccc(C)cc1"] * 400)
    with torch.no_grad(), patterns_recorded(subject) as dense:
        subject.hidden(batch.ids, batch.mask)
    with torch.no_grad(), sub_sampled(subject, batch, rule, dice()), patterns_recorded(subject) as seen:
        subject.hidden(batch.ids, batch.mask)
    found = seen[subject.attentions[0]]
    assert not torch.equal(found[0], found[1])
    # an entry of 0.1 that is 0.4 in a quarter of the draws has sd 0.17, their mean over 400 0.009
    assert torch.allclose(found.mean(0), dense[subject.attentions[0]][0], atol=0.04)
    zero = (found == 0).double().mean((0, 1))
    assert zero[:, 0].max() == 0
    assert zero.diagonal().max() == 0
    assert zero[1:-1, 1:-1].fill_diagonal_(0.75) == pytest.approx(0.75 * torch.ones_like(zero[1:-1, 1:-1]), abs=0.1)


def test_the_ensemble_is_the_dense_pass_where_all_values_are_the_same(tmp_path):
    subject = fresh(tmp_path, MOLECULES, 0)
    model: Any = subject.model
    judged = Judged.of(subject, MOLECULES, 2, 0)
    assert judged.chosen.any()
    copies = judged.chosen.unflatten(0, (2, len(MOLECULES))).sum((0, 2))
    assert judged.counts().tolist() == copies.tolist()
    rule = Rule("random", 1 / 4)
    found = losses(subject, judged, rule, 4, 0)
    assert abs(found["ensemble"] - found["dense"]).max() > 1e-3
    with torch.no_grad():
        for layer in model.esm.encoder.layer:
            own = layer.attention.self
            for weight in (own.query.weight, own.query.bias, own.value.weight):
                weight.zero_()
            own.value.bias.normal_(generator=dice())
    found = losses(subject, judged, rule, 4, 0)
    assert found["ensemble"] == pytest.approx(found["dense"], abs=1e-4)
    assert found["one"] == pytest.approx(found["dense"], abs=1e-4)


def test_the_mean_of_probabilities_is_no_worse_than_that_of_losses(subject):
    judged = Judged.of(subject, MOLECULES, 3, 0)
    found, some = losses(subject, judged, Rule("random", 1 / 8), 6, 0), judged.counts() > 0
    assert some.sum() > 3
    assert (found["ensemble"] < found["one"])[some].all()
    assert (found["dense"] == 0)[~some].all()


RESIDUES, FAR = "ACDEFGHIKLMNPQRSTVWY", 2


@pytest.fixture(scope="module")
def copier(tmp_path_factory):
    """At the mask it predicts the token at place `FAR`, which a head of the first layer looks for."""
    names = ["token <mask>", f"position {FAR}", *(f"{kind} {t}" for kind in ("token", "answer") for t in RESIDUES)]
    weights = Weights(names, RESIDUES)
    weights.head(
        0, [("token <mask>", f"position {FAR}", 16.0)], [(f"token {t}", f"answer {t}", 20.0) for t in RESIDUES]
    )
    return weights.load(tmp_path_factory.mktemp("copier"))


@pytest.mark.parametrize("share", [1 / 4, 1 / 8])
def test_one_far_key_is_found_as_often_as_it_is_kept(copier, share):
    """Fillers are another token than that to be copied, so that no guess is right."""
    answers = torch.tensor([copier.token_id(t) for t in RESIDUES[1:]])
    batch = copier.tokenize([RESIDUES[0] * 20] * len(answers))
    batch.ids[:, FAR], batch.ids[:, 20] = answers, copier.mask_id

    def right():
        return copier.head(copier.hidden(batch.ids, batch.mask)[:, 20]).argmax(-1) == answers

    assert right().all()
    generator, hits = dice(), []
    for _ in range(40):
        drawn = sub_sampled(copier, batch, Rule("random", share), generator, each=True)
        with drawn, patterns_recorded(copier) as seen:
            hits.append(right())
        assert torch.equal(hits[-1], seen[copier.attentions[0]][:, 0, 20, FAR] > 0)
    n = len(hits) * len(answers)
    # four sd of a share of n draws
    assert float(torch.stack(hits).double().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_the_same_is_read_whatever_the_rule(tmp_path):
    """A rule that removes nothing trains the weights that dense training does."""
    found = []
    for rule in (None, Rule("random", 1.0), Rule("random", 1 / 4)):
        subject = fresh(tmp_path, MOLECULES, 0)
        before = subject.model.lm_head.dense.weight.clone()
        trained(subject, subject.tokenize(MOLECULES), rule, 5, 0)
        assert not torch.equal(before, subject.model.lm_head.dense.weight)
        found.append(subject.model.lm_head.dense.weight.detach())
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_differences_are_paired():
    generator = torch.Generator().manual_seed(0)
    base = [10 * torch.rand(40, generator=generator).double().numpy() for _ in range(3)]
    tokens = torch.full((40,), 5.0).double().numpy()

    def of(shift):
        return [({"dense": b + shift, "ensemble": b + 2 * shift + 0.5, "one": b}, {"dense": b}) for b in base]

    dense, better = compared({None: of(0.0), RULES[0]: of(-1.0)}, tokens, tokens, 0)
    mean = sum(b.mean() for b in base) / 15
    assert dense["dense"] == pytest.approx(mean)
    assert (dense["dense_diff"], dense["better_seeds"]) == (0, 0)
    # a nat of five tokens less, in every molecule and seed: its interval is as narrow as rounding
    assert better["dense_diff_ci"] == pytest.approx((-0.2, -0.2))
    assert better["ensemble_diff_ci"] == pytest.approx((-0.3, -0.3))
    assert better["own_diff_ci"] == pytest.approx((-0.1, -0.1))
    assert better["gap_diff_ci"] == pytest.approx((-0.2, -0.2))
    assert better["better_seeds"] == 3
    low, high = better["dense_ci"]
    assert low < mean - 0.2 < high
    assert high - low > 0.1

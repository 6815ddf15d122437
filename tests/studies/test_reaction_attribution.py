"""Scores of precursor atoms against their definitions, on a tiny BERT; heads chosen where the circuit is planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.interventions import Heads, mean_values
from isotrace.studies.atom_mapping import Case, Masked
from isotrace.studies.reactions import attribution as module
from isotrace.studies.reactions.attribution import Sizes, choose, head_rows, parts
from isotrace.studies.reactions.context import altered, context_rows, logits_at
from isotrace.studies.reactions.scores import attention, hits, integrated, left_out, same_token, value_of
from isotrace.studies.study import Setting
from isotrace.studies.worlds.planted_subjects import copy
from isotrace.subjects.dispatch import patterns_recorded
from isotrace.subjects.subject import Batch


def setting(tmp_path):
    return Setting(True, tmp_path, 0, lambda items, label: items, {})


@pytest.fixture
def bert(_loaded):
    return _loaded["bert"][1]


@pytest.fixture
def case(bert):
    """CCNO → CNOC: places 1 to 4 are precursors in two molecules, 5 to 8 the product; the last atom has no partner."""
    bonded = {5: (6,), 6: (5, 7), 7: (6, 8), 8: (7,)}
    batch, molecules = bert.tokenize(["CCNOCNOC"]), {1: 0, 2: 0, 3: 1, 4: 1}
    batch = Batch(batch.ids, batch.mask, ("CC.NO>>CNOC",), (((0, 0), (0, 1), (1, 2), (3, 4), (4, 5)),))
    return Case(batch, (5, 6, 7, 8), (1, 2, 3, 4), {5: 2, 6: 3, 7: 4}, bonded, molecules)


@pytest.fixture
def item(bert, case):
    ids = case.batch.ids.clone()
    ids[0, 6] = bert.mask_id
    return Masked(case, case.batch.with_ids(ids), (6,))


def test_attention_is_that_to_precursors_and_sums_to_one(double, bert, item):
    found = attention(bert, item, [6, 7])
    with patterns_recorded(bert) as patterns:
        bert.hidden(item.batch.ids, item.batch.mask)
    layers = [patterns[module][0] for module in bert.attentions]
    flow = torch.eye(len(item.batch.ids[0]))
    for layer, pattern in enumerate(layers):
        part = pattern[:, [6, 7]][..., 1:5]
        assert torch.allclose(found.heads[layer], part / part.sum(-1, keepdim=True))
        flow = (0.5 * pattern.mean(0) + 0.5 * torch.eye(len(flow))) @ flow
    assert torch.allclose(found.rolled, flow[[6, 7], 1:5])
    summed = found.of([(0, 1), (1, 0)], [2.0, -1.0])
    assert torch.allclose(summed, 2 * found.heads[0, 1] - found.heads[1, 0])


def test_left_out_is_a_loop_over_atoms(double, bert, item):
    value, expected = value_of(bert, item), []
    for place in item.case.precursors:
        ids = item.batch.ids.clone()
        ids[0, place] = bert.mask_id
        expected.append(float(value(item.batch) - value(item.batch.with_ids(ids))))
    assert left_out(bert, item)[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_integrated_gradients_add_up_to_what_hiding_all_atoms_costs(double, bert, item):
    ids = item.batch.ids.clone()
    ids[0, 1:5] = bert.mask_id
    whole = float(value_of(bert, item)(item.batch) - value_of(bert, item)(item.batch.with_ids(ids)))
    assert float(integrated(bert, item).sum()) == pytest.approx(whole, rel=0.02)


def test_hits_by_hand(item):
    scores = torch.tensor([[0.0, 0.1, 0.4, 0.5], [0.9, 0.0, 0.1, 0.6]])  # of the products' atoms 6 and 5
    found = hits(item, [6, 5], scores)
    assert (found.asked, found.atom, found.molecule) == (2, 0.0, 2.0)
    assert hits(item, [6], torch.tensor([[0.0, 0.0, 1.0, 0.0]])).atom == 1
    # the product's N (place 6) has one N before it, its C two: never an atom of another token
    rng = np.random.default_rng(0)
    assert same_token(item, [6, 5], rng).argmax(-1).tolist()[0] == 2
    assert {int(same_token(item, [5], rng).argmax()) for _ in range(30)} == {0, 1}


def test_the_planted_copy_head_is_chosen(tmp_path):
    """Induction: the last token A asks for what stood behind the first A."""
    planted = copy(tmp_path, 16, 0)
    subject, items = planted.subject, []
    for row in range(16):
        batch = Batch(planted.clean.ids[row : row + 1], planted.clean.mask[row : row + 1], (), ())
        asked = batch.ids.shape[1] - 2
        first = int((batch.ids[0, :asked] == batch.ids[0, asked]).nonzero()[0])
        truth = batch.ids.clone()
        truth[0, asked] = batch.ids[0, first + 1]
        before = tuple(range(1, asked))
        case = Case(batch.with_ids(truth), (asked,), before, {asked: first + 1}, {}, dict.fromkeys(before, 0))
        items.append(Masked(case, batch, (asked,)))
    reference = mean_values(subject, Heads(), [item.batch for item in items])
    chosen = choose(subject, items, reference, 12, setting(tmp_path))
    (induction,) = {node for node in planted.truth["head"] if node[0] == 1}
    assert chosen.heads == [induction]
    at = {head: j for j, head in enumerate(chosen.candidates)}
    assert chosen.points[:, at[induction]].mean() == chosen.accuracy[1] == 1
    assert chosen.weights[0] > 0
    decoys = [head for head in chosen.candidates if head not in planted.truth["head"]]
    falls = chosen.falls.mean(0)
    assert falls[at[induction]] > 10 * max(abs(falls[at[head]]) for head in decoys)
    rows = head_rows("discovery", chosen.candidates, chosen.points, chosen.falls, chosen, 0)
    assert {row["head"]: row["verdict"] for row in rows if row["chosen"]} == {f"1.{induction[1]}": "cause"}


def test_another_atom_is_written_where_the_reaction_stays_readable(double, bert, item):
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = altered(bert, item, rng)
        assert (found.place, found.old) == (6, int(item.case.batch.ids[0, 6]))
        changed = [(b.ids[0] != item.batch.ids[0]).nonzero()[:, 0].tolist() for b in (found.partner, found.other)]
        assert changed[0] == [3]
        assert len(changed[1]) == 1
        assert changed[1][0] in (1, 2, 4)
        assert found.new == int(found.partner.ids[0, 3]) != found.old
        # the partner is bonded once and stands in no ring: nothing aromatic, and what is written has a bond to give
        assert bert.tokens(torch.tensor([found.new]))[0] in ("C", "O", "S", "F", "Cl", "Br", "I")
        assert found.hidden.ids[0, 1:5].tolist() == [bert.mask_id] * 4
    assert altered(bert, replace(item, asked=(8,)), rng) is None


def test_a_masked_atom_hears_of_another_only_through_heads(double, bert, item):
    """All heads patched from the altered text give what the altered text gives."""
    found = altered(bert, item, np.random.default_rng(0))
    heads = [(n, h) for n in range(bert.n_layers) for h in range(bert.n_heads(0))]
    values = Heads().record(bert, found.partner)[0]
    there, here = (logits_at(bert, batch, 6, (), None) for batch in (found.partner, found.clean))
    assert torch.allclose(logits_at(bert, found.clean, 6, heads, values), there)
    assert not torch.allclose(here, there)
    rows = context_rows(bert, [found] * 3, [(0, 0)], 1, tuple(v[0, 0] for v in values), 2, 0)
    by_name = {row["condition"]: row for row in rows}
    assert by_name["as it is"]["new_minus_old"] == pytest.approx(float(here[found.new] - here[found.old]))
    written = by_name["another atom at its precursor atom"]
    assert written["new_minus_old"] == pytest.approx(float(there[found.new] - there[found.old]))
    assert written["follows"] == float(there.argmax() == found.new)
    assert {row["sets"] for row in rows} == {1, 2}
    patched = by_name["as it is, heads 1 of all layers from the altered text"]
    column = logits_at(bert, found.clean, 6, [(n, 1) for n in range(bert.n_layers)], values)
    assert patched["new_minus_old"] == pytest.approx(float(column[found.new] - column[found.old]))


def test_no_patent_is_on_both_sides(bert, monkeypatch):
    monkeypatch.setattr(module, "_masked", lambda subject, rows, sizes, rng, n: rows[:n])
    groups = [f"US{i % 7}" for i in range(40)]
    rows = [(str(i), group) for i, group in enumerate(groups)]
    found = parts(bert, rows, groups, Sizes(9, 6, 2, 20, 5, 1, 1, 1, 1), 0)
    assert len(found.held) == 2
    assert len(found.discovery) == 6
    assert {group for _, group in found.held + found.discovery}.isdisjoint(group for _, group in found.report)
    with pytest.raises(InputError, match="too few"):
        parts(bert, rows[:8], groups[:8], Sizes(9, 6, 2, 20, 5, 1, 1, 1, 1), 0)


def test_maps_of_ones_own_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("ISOTRACE_DATA", raising=False)
    with pytest.raises(InputError, match="ISOTRACE_DATA"):
        module.reaction_attribution(setting(tmp_path))

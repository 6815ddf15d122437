"""Tasks of masked product atoms, agreement of attention with atom maps: on a tiny BERT and a made-up reaction."""

import numpy as np
import pytest
import torch
from transformers import BertModel

from isotrace.base.errors import InputError
from isotrace.studies.atom_mapping import (
    DIRECTIONS,
    MAPS,
    NAMED,
    Case,
    agreement,
    agreement_rows,
    masked,
    patent_maps,
    unmasked,
)
from isotrace.studies.head_removal import without

MOLECULE = {1: 0, 2: 0, 3: 0, 4: 0}


@pytest.fixture
def bert(_loaded):
    return _loaded["bert"][0]


@pytest.fixture
def case(bert):
    """CCNO → CNOC: places 1 to 4 are precursors, 5 to 8 the product; the last carbon has no partner."""
    batch = bert.tokenize(["CCNOCNOC"])
    bonded = {5: (6,), 6: (5, 7), 7: (6, 8), 8: (7,)}
    return Case(batch, (5, 6, 7, 8), (1, 2, 3, 4), {5: 2, 6: 3, 7: 4}, bonded, MOLECULE)


def test_tasks_hide_what_they_say(bert, case):
    rng = np.random.default_rng(0)
    for task, count in {"one": 1, "copied": 1, "all": 4}.items():
        for _ in range(10):
            item = masked(bert, case, task, rng)
            hidden = (item.batch.ids[0] == bert.mask_id).nonzero()[:, 0].tolist()
            assert len(hidden) == count
            assert set(hidden) == set(item.asked)
            assert set(hidden) <= ({6, 7} if task == "copied" else {5, 6, 7, 8})
            assert torch.equal(item.truth(), case.batch.ids[0, hidden])
    item = masked(bert, case, "neighbours", rng)
    hidden = (item.batch.ids[0] == bert.mask_id).nonzero()[:, 0].tolist()
    assert sorted(hidden) == sorted((*item.asked, *case.bonded[item.asked[0]]))
    assert not (case.batch.ids == bert.mask_id).any()


def test_no_atom_to_copy(bert):
    batch = bert.tokenize(["CNNCN"])
    case = Case(batch, (4, 5), (1, 2, 3), {4: 1, 5: 2}, {4: (5,), 5: (4,)}, {1: 0, 2: 0, 3: 0})
    assert masked(bert, case, "copied", np.random.default_rng(0)) is None


def test_metrics(bert, case):
    item = masked(bert, case, "all", np.random.default_rng(0))
    final = bert.hidden(item.batch.ids, item.batch.mask).repeat(2, 1, 1)
    logits = bert.run(item.batch).logits[0]
    true = [logits[p, case.batch.ids[0, p]] for p in (5, 6, 7, 8)]
    expected = torch.stack(true).mean() - logits[5:9].mean()
    assert torch.allclose(item.metric(bert, "logit")(item.batch, final), expected.expand(2), atol=1e-5)
    expected = torch.stack(true).mean() - logits[5:9].exp().sum(-1).log().mean()
    assert torch.allclose(item.metric(bert, "log-probability")(item.batch, final), expected.expand(2), atol=1e-5)


def test_agreement_against_transformers(bert, folders, case):
    plain = BertModel.from_pretrained(folders["bert"], attn_implementation="eager", add_pooling_layer=False).eval()
    item = unmasked(case)
    found = agreement(bert, [item, item], seed=0)
    with torch.no_grad():
        layers = plain(input_ids=case.batch.ids, output_attentions=True).attentions
    for layer, attention in enumerate(layers):
        for head in range(2):
            pattern = attention[0, head]
            for d, summed in enumerate((pattern, pattern + pattern.T)):
                right = sum(int(summed[p, 1:5].argmax()) + 1 == partner for p, partner in case.partner.items())
                assert found.hits[0, :, d, layer, head].tolist() == [right, right]
    assert found.atoms.tolist() == [3, 3]
    # no two of the atoms share a token, so that nothing can be permuted within one
    assert np.array_equal(found.hits[2], found.hits[0])
    assert np.array_equal(found.share()[0], found.hits[0, 0] / 3)
    low, high = found.interval(seed=0)
    assert np.allclose(low[0], high[0])


def test_agreement_of_a_head_that_follows_the_map(bert, case):
    """Shares and rows, of hits planted in one head of an agreement as large as RXNMapper's."""
    found = agreement(bert, [unmasked(case)] * 40, seed=0)
    hits = np.zeros((3, 40, 2, 12, 8))
    hits[0, :, :, *NAMED] = 3
    hits[0, :30, :, 9, 5] = 3
    hits[1, ::3, :, *NAMED] = 3
    rows = agreement_rows("planted", type(found)(hits, found.atoms), seed=0)
    assert [(row["attention"], row["maps"]) for row in rows] == [(d, m) for d in DIRECTIONS for m in MAPS]
    assert (rows[0]["named"], rows[0]["named_rank"], rows[0]["best_other"]) == (1.0, 1, "9.5")
    assert (rows[0]["best_other_share"], rows[0]["best_of_other_indices"]) == (0.75, 0.0)
    assert rows[1]["named_ci"][0] < rows[1]["named"] == 14 / 40 < rows[1]["named_ci"][1]


def test_removal_changes_the_metric_as_hooks_do(bert, case):
    item = masked(bert, case, "all", np.random.default_rng(0))
    means = tuple(torch.zeros(2, bert.d_head(0)) for _ in range(bert.n_layers))

    def zero(module, args):
        x = args[0].clone()
        x[..., bert.d_head(1) :] = 0
        return (x,)

    handle = bert.hookpoint("layers.1.head_out")[0].register_forward_pre_hook(zero)
    logits = bert.run(item.batch).logits[0, list(item.asked)]
    handle.remove()
    values, right = without(bert, [item], [(1, 1)], means)
    true = logits.gather(-1, item.truth()[:, None])[:, 0]
    assert values[0] == pytest.approx(float((true - logits.mean(-1)).mean()), rel=1e-4)
    assert right[0] == (logits.argmax(-1) == item.truth()).double().mean()
    assert without(bert, [item], [], means)[0][0] != pytest.approx(values[0], rel=1e-3)


def test_patent_maps(tmp_path):
    with pytest.raises(InputError, match="ISOTRACE_DATA"):
        patent_maps(tmp_path)
    (tmp_path / "reactions").mkdir()
    text = "patent_id,mapped_rxn,reactants,product\nUS1,[CH3:1]Cl>>[CH3:1]O,CCl,CO\n"
    (tmp_path / "reactions" / "uspto50k_test_patent_mapped.csv").write_text(text)
    assert patent_maps(tmp_path) == [("CCl>>CO", "[CH3:1]Cl>>[CH3:1]O")]

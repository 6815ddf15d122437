"""Training sequences that a subject makes itself (scripts/build_antiberty.py): draws of its own, none twice."""

import numpy as np
import torch
from tiny_training import corpus

from build_antiberty import REAL, refilled, sample

LETTERS = "CNO"


def test_a_refilled_token_is_a_draw_from_the_prediction(rotary):
    letters = torch.tensor([rotary.token_id(letter) for letter in LETTERS])
    ids = rotary.tokenize(["C"]).ids
    masked = ids.masked_fill(~rotary.special(ids), rotary.mask_id)
    final = rotary.hidden(masked, torch.ones_like(ids, dtype=torch.bool))
    expected = rotary.head(final)[0, 1, letters].softmax(-1)
    n = 4_000
    drawn = refilled(rotary, ids.expand(n, -1), letters, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, [0, -1]], ids[:, [0, -1]].expand(n, -1))  # what is special stays
    share = (drawn[:, 1, None] == letters).double().mean(0)
    assert (share - expected).abs().max() < 4 * 0.5 / n**0.5
    assert expected.max() - expected.min() > 16 * 0.5 / n**0.5  # else uniform draws would pass


def test_own_chains_are_new_and_stand_once(rotary):
    known = corpus(rotary)
    found = sample(rotary, known, 2, LETTERS)
    rows = [tuple(row) for row in found.ids]
    there, copies = [tuple(row) for row in known.ids], REAL * len(known.ids)
    assert rows[:copies] == there * REAL
    made = rows[copies:]
    assert len(made) > len(there)
    assert len(set(made)) == len(made)
    assert not set(made) & set(there)
    assert {len(row) for row in made} <= {len(row) for row in there}
    again = sample(rotary, known, 2, LETTERS)
    np.testing.assert_array_equal(found.tokens, again.tokens)

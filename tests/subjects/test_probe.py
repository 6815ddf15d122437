"""What a probe pools."""

import torch

import tiny
from isotrace.subjects.probe import pool, pooling_weights


def test_a_mask_token_is_pooled_and_other_special_tokens_are_not(rotary):
    batch = rotary.tokenize([tiny.SMILES, "CC"])
    masked = rotary.prepare_prediction(batch, 1)[0]
    assert int(masked.ids[0, 1]) == rotary.mask_id
    weights = pooling_weights(rotary, masked)
    assert torch.equal(weights, pooling_weights(rotary, batch))
    assert float(weights[0, 0]) == float(weights[1, 3]) == 0, "begin, end and padding say nothing"
    torch.testing.assert_close(weights[1, 1:3], torch.tensor([0.5, 0.5]))
    final = torch.randn(*masked.ids.shape, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool(rotary, masked, final)[1], final[1, 1:3].mean(0))

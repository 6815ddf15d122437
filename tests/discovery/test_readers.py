"""What reads a hookpoint, on every family: what lies outside changes nothing, what lies inside does."""

import pytest
import torch

from isotrace.base.errors import SubjectError
from isotrace.discovery.readers import reading_maps, row_space
from isotrace.subjects.dispatch import hookpoints_edited

POST_NORM = {"bert", "roberta", "albert", "deberta-v2", "bart", "molformer", "smited"}
# columns per layer: Q, K, V and the MLP's first maps
READERS = {"modernbert": 3 * 16 + 48, "esmc": 3 * 16 + 48, "llama": 16 + 8 + 8 + 48}


@pytest.mark.every_family
@torch.no_grad()
def test_what_is_not_read_changes_nothing(subject, variant):
    batch = subject.tokenize(["CCOCC", "c1cc[nH]c1"])
    clean = subject.hidden(batch.ids, batch.mask)
    generator = torch.Generator().manual_seed(3)
    post, rms = variant in POST_NORM, variant in ("llama", "t5-relu", "t5-gated")
    stream = 16 if rms else 15
    ranks = {"neuron": 16, "head_out": 12 if variant.startswith("t5") else 16, "mlp_in": 16, "attn_out": stream,
             "mlp_out": stream, "resid_pre": 16 if post else stream, "resid_post": 16 if post else stream}  # fmt: skip
    for layer in (0, subject.n_layers - 1):
        for kind, rank in ranks.items():
            site = f"layers.{layer}.{kind}"
            if variant == "modernbert" and site == "layers.0.resid_pre":
                rank = 16  # its first attention stands behind no norm of its own
            if variant in ("molformer", "smited") and site == "layers.2.resid_post":
                rank = 15  # its final norm is all that reads the last block
            if len(subject.stack_sizes) > 1 and kind not in ("neuron", "head_out", "mlp_in"):
                with pytest.raises(SubjectError, match="encoder–decoder"):
                    row_space(subject, site)
                continue
            read = row_space(subject, site).float()
            assert read.shape[1] == rank, site
            moves = torch.randn(len(read), generator=generator)
            inside = read @ read.T @ moves
            for direction, still in ((moves - inside, True), (inside, False)):
                with hookpoints_edited(subject, {site: lambda x, direction=direction: x + direction}):
                    change = (subject.hidden(batch.ids, batch.mask) - clean)[batch.mask].abs().max()
                assert (float(change) < 1e-4) == still, (site, float(change))


@pytest.mark.every_family
def test_readers_of_the_stream(subject, variant):
    if len(subject.stack_sizes) > 1:
        pytest.skip("an encoder–decoder is refused, see the test above")
    for layer in range(subject.n_layers):
        after = subject.n_layers - 1 - layer
        maps = reading_maps(subject, f"layers.{layer}.resid_post")
        assert maps.shape == (16, after * READERS.get(variant, 3 * 16 + 24) + 16)


def test_a_readout_reads_what_it_reads(rotary):
    readout = torch.randn(16, 1, generator=torch.Generator().manual_seed(4))
    last = rotary.module("esm.encoder.emb_layer_norm_after")
    expected = last.weight * readout[:, 0]
    expected = expected - expected.mean()
    (found,) = row_space(rotary, "layers.2.resid_post", readout).T
    assert abs(float(found.float() @ expected / expected.norm())) == pytest.approx(1, abs=1e-5)
    assert row_space(rotary, "layers.2.mlp_out", readout).shape[1] == 1
    assert row_space(rotary, "layers.1.resid_post", readout).shape[1] == 15

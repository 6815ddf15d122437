"""Connections that hold for all inputs: they add up to pre-activations, and planted ones come first."""

from itertools import product
from typing import Any

import pytest
import torch

import tiny
from isotrace.attribution.weights.contributions import contributions, shares
from isotrace.attribution.weights.global_edges import Block, blocks, edge_table, permuted
from isotrace.attribution.weights.record import Recordings
from isotrace.attribution.weights.routes import Hop, Reads, routes, written
from isotrace.attribution.weights.segments import Place, Segments
from isotrace.attribution.weights.tokens import de_embedding, un_embedding
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import batches_of
from isotrace.dictionaries.saving import load_dictionary
from isotrace.studies.worlds.planted_subjects import planted_subjects
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.frozen import FrozenSubject, Sources
from isotrace.subjects.subject import load_subject

TEXTS = ["CCO", "CC(=O)N", "c1cc[nH]c1", "OCC"]
SHAPES = {
    "crosslayer": {"window": 3},
    "transcoder": {},
    "skip_transcoder": {"skip": True},
    "standardised": {"architecture": "crosslayer", "window": 3, "token_normalization": "standardize"},
}


def recorded(subject, texts=TEXTS, **shape):
    dictionary = tiny.random_dictionary(subject, **shape)
    return Recordings(Segments(subject, dictionary), batches_of(subject, texts))


def constants(segments, batch, reads):
    """What biases alone give, by a replay of the frozen subject where heads and embeddings give nothing."""
    subject, dictionary = segments.subject, segments.dictionary
    frozen = FrozenSubject(subject, batch)
    n_tokens = batch.ids.shape[1]
    zero = frozen.sources.map(torch.zeros_like)
    biases = [b.expand(1, n_tokens, -1) for b in dictionary.b_dec]
    silent = {f"layers.{m}.head_out": torch.zeros_like for m in range(subject.n_layers)}
    with hookpoints_edited(subject, silent):
        x = frozen.replay(Sources(zero.embeddings, tuple(biases))).mlp_in[reads.slot]
    rows = reads.segments.reads(reads.slot, reads.features)
    return (x @ rows.T + dictionary.b_enc[reads.slot][reads.features])[0]


def add_up(subject, shape):
    """`constants` is what the other terms leave; a replay in which nothing but biases speaks gives the same."""
    recordings = recorded(subject, **({"architecture": shape} | SHAPES[shape]))
    reads = Reads(recordings.segments, 2, torch.arange(12))
    for rows, batch in recordings.batches:
        found = contributions(recordings, reads, rows, batch)
        assert {"token", "features", "head 1.1", "errors"} <= {*found.terms}
        assert ("skip" in found.terms) == (shape == "skip_transcoder")
        for row in range(len(rows)):
            alone = subject.tokenize([batch.sequences[row]])
            expected = constants(recordings.segments, alone, reads)
            assert tiny.relative(found.terms["constants"][row], expected) < 1e-5


@pytest.mark.every_family
def test_terms_add_up_to_the_preactivation(subject64):
    """Pre-norm, post-norm and parallel blocks; two streams are refused."""
    if len(subject64.stack_sizes) == 1:
        add_up(subject64, "crosslayer")
    else:
        with pytest.raises(SubjectError, match="an encoder and a decoder"):
            recorded(subject64)


@pytest.mark.parametrize("shape", ["transcoder", "skip_transcoder"])
def test_terms_add_up_for_every_transcoder(subject64, shape):
    add_up(subject64, shape)


def test_standardised_tokens(rotary64):
    """Mean and deviation of what is read are like one more norm; of what is written the deviation scales features."""
    subject = rotary64
    recordings = recorded(subject, **SHAPES["standardised"])
    segments, reads = recordings.segments, Reads(recordings.segments, 2, torch.arange(12))
    for rows, batch in recordings.batches:
        found = contributions(recordings, reads, rows, batch)
        given = found.terms["features"]
        for row in range(len(rows)):
            captured = subject.run(subject.tokenize([batch.sequences[row]]), capture=segments.dictionary.config.reads)
            x = torch.stack([captured.captured[name][0] for name in segments.dictionary.config.reads])
            active = {s: segments.dictionary.encode(s, x[s]).dense(12) for s in range(3)}
            sigma = recordings.record(rows, batch).sigma[:, row]
            expected = 0
            for target in (0, 1):
                alone = segments.dictionary.decode(target, active, x[target])
                silent = {s: torch.zeros_like(a) for s, a in active.items()}
                write = alone - segments.dictionary.decode(target, silent, x[target])
                at = Place("features", target)
                v = (write @ reads.first[at].T) * segments.gain(at, reads.to, sigma)[:, None]
                expected = expected + v / (x[2].std(-1, keepdim=True) + 1e-5)
            torch.testing.assert_close(given[row], expected, rtol=1e-9, atol=1e-12)


def through(frozen, live):
    """Edits under which heads give what they gave, all but the one that is `live`."""
    subject, given = frozen.subject, {}
    names = [f"layers.{m}.head_out" for m in range(subject.n_layers)]
    clean = subject.run(subject.tokenize([SEQUENCE]), capture=names, logits=False).captured

    def kept(x, name, m):
        fixed = clean[name].expand(x.shape).clone()
        if live is not None and live[0] == m:
            d = subject.d_head(m)
            at = slice(live[1] * d, (live[1] + 1) * d)
            fixed[..., at] = x[..., at]
        return fixed

    for m, name in enumerate(names):
        given[name] = lambda x, name=name, m=m: kept(x, name, m)
    return hookpoints_edited(subject, given)


SEQUENCE = "CC(=O)N"


def removed(subject, dictionary, source, i, slot, j, live):
    """`[query, key]`: by how much h_j falls at a token when feature i is taken away at another, by interventions in the
    frozen subject."""
    batch = subject.tokenize([SEQUENCE])
    frozen = FrozenSubject(subject, batch)
    z = dictionary.encode(source, frozen.actual.mlp_in[source][0]).dense(12)[:, i]
    columns = []
    with through(frozen, live):
        clean = frozen.replay(frozen.sources).mlp_in[slot][0] @ dictionary.W_enc[slot][:, j]
        for key in range(batch.ids.shape[1]):
            outputs = [m.clone() for m in frozen.sources.mlp_out]
            for target in dictionary.config.targets(source):
                outputs[target][0, key] -= z[key] * dictionary.decoder(source, target)[i]
            changed = frozen.replay(Sources(frozen.sources.embeddings, tuple(outputs))).mlp_in[slot][0]
            columns.append(clean - changed @ dictionary.W_enc[slot][:, j])
    return torch.stack(columns, 1)


def test_a_global_edge_is_what_interventions_find_when_the_feature_fires(subject64):
    """Pre-norm and post-norm, with features that write to several layers; in units of the deviation."""
    subject = subject64
    recordings = recorded(subject, [SEQUENCE], window=3)
    dictionary = recordings.segments.dictionary
    x = subject.run(subject.tokenize([SEQUENCE]), capture=dictionary.config.reads).captured["layers.2.mlp_in"][0]
    h, z = dictionary.preactivations(2, x), dictionary.encode(2, x).dense(12)
    j = int(z.sum(0).argmax())
    found = {(b.route, b.source): b for b in blocks(recordings, 2, torch.tensor([j]))}
    for live in (None, (1, 0), (2, 1)):
        for source in (0, 1) if live != (1, 0) else (0,):
            block = found[(() if live is None else (Hop("head", *live),)), source]
            i = int(block.value[:, 0].abs().argmax())
            effect = removed(subject, dictionary, source, i, 2, j, live)
            if live is not None:
                effect = effect - removed(subject, dictionary, source, i, 2, j, None)
            expected = (effect.sum(1) * z[:, j]).sum() / z[:, j].sum() / h[:, j].std(unbiased=False)
            assert float(block.value[i, 0]) == pytest.approx(float(expected), rel=1e-8)
            assert abs(float(expected)) > 1e-4


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return {one.name: one for one in planted_subjects(tmp_path_factory.mktemp("planted"), 24, seed=0)}


def of_planted(one):
    texts = [*one.clean.sequences, *one.corrupt.sequences]
    return Recordings(Segments(one.subject, one.dictionary), batches_of(one.subject, texts))


def test_the_planted_edges_of_brackets_come_first(planted):
    """The neuron that joins the two signs reads them at its own token, and nothing else as much."""
    recordings = of_planted(planted["bracket"])
    joined = [node for node in planted["bracket"].truth["feature"] if node[0] == 1]
    signs = {node for node in planted["bracket"].truth["feature"] if node[0] == 0}
    ((_, j),) = joined
    rows = [(abs(float(b.value[i, 0])), written(recordings.segments, b.route), (b.source, i))
            for b in blocks(recordings, 1, torch.tensor([j])) for i in range(len(b.value))]  # fmt: skip
    first = sorted(rows, reverse=True)[:3]
    assert {(route, node) for _, route, node in first[:2]} == {("same token", node) for node in signs}
    assert first[1][0] > 2 * first[2][0]
    found = [contributions(recordings, Reads(recordings.segments, 0, torch.tensor([n for _, n in sorted(signs)])),
                           rows, batch) for rows, batch in recordings.batches]  # fmt: skip
    largest = [max(shares(found).items(), key=lambda item: item[1][k])[0] for k in range(2)]
    assert largest == ["head 0.0"] * 2, "the balance"


def test_the_planted_edges_of_rings_come_first(planted):
    """Every neuron that answers reads one head most, and through it and the one before its own atom."""
    one = planted["ring"]
    recordings = of_planted(one)
    neurons = torch.tensor(sorted(n for _, n in one.truth["feature"]))
    reads = Reads(recordings.segments, 1, neurons)
    previous, partner = sorted(one.truth["head"])
    found = shares([contributions(recordings, reads, rows, batch) for rows, batch in recordings.batches])
    heads = {name: share for name, share in found.items() if name.startswith("head")}
    ways = [
        *routes(recordings.segments, 1),
        *product([Hop("head", 1, h) for h in range(4)], [Hop("head", 0, h) for h in range(4)]),
    ]
    given = {route: de_embedding(recordings, reads, route).given for route in ways}
    for k in range(len(neurons)):
        assert max(heads, key=lambda name: heads[name][k]) == "head {}.{}".format(*partner)
        route = max(ways, key=lambda route: float(given[route][:, k].abs().max()))
        assert route == (Hop("head", *partner), Hop("head", *previous))
        assert one.subject.tokens(given[route][:, k].argmax()[None]) == ["CNSPB"[k]]


def test_a_skip_path_is_a_route(rotary64):
    """Through it a feature reaches what reads behind it, as an intervention on the layer between finds."""
    recordings = recorded(rotary64, [SEQUENCE], **SHAPES["skip_transcoder"], architecture="skip_transcoder")
    segments, (_, batch) = recordings.segments, recordings.batches[0]
    dictionary, hop = segments.dictionary, Hop("skip", 1)
    found = {(b.route, b.source): b for b in blocks(recordings, 2, torch.arange(12))}
    assert (hop,) in routes(segments, 2)
    block = found[(hop,), 0]
    x = rotary64.run(batch, capture=dictionary.config.reads).captured
    z = [dictionary.encode(slot, x[name][0]).dense(12) for slot, name in enumerate(dictionary.config.reads)]
    sigma = recordings.record(*recordings.batches[0]).sigma[:, 0]
    a, b = Place("features", 0), Place("features", 1)
    gain = segments.gain(a, b, sigma) * segments.gain(b, Place("features", 2), sigma)
    scale = [segments.norms[segments.crossed(*pair)[0]].weight for pair in ((a, b), (b, Place("features", 2)))]
    centred = lambda y: y - y.mean(-1, keepdim=True)  # noqa: E731
    arrives = centred(centred(dictionary.decoder(0, 0)) * scale[0] @ dictionary.W_skip[1]) * scale[1]
    weights = arrives @ dictionary.W_enc[2]
    h = dictionary.preactivations(2, x["layers.2.mlp_in"][0])
    together = torch.einsum("ti,tj,t->ij", z[0], z[2], gain)
    expected = weights * together / z[2].sum(0) / h.std(0, unbiased=False)
    alive = z[2].sum(0) > 0
    torch.testing.assert_close(block.value[:, alive], expected[:, alive], rtol=1e-8, atol=1e-12)


def test_what_a_feature_promotes_is_what_the_frozen_head_loses_without_it(subject64):
    """In the last layer nothing but the direct way leads to the head. Through its function where it has one."""
    recordings = recorded(subject64, [SEQUENCE], architecture="transcoder")
    dictionary, batch = recordings.segments.dictionary, subject64.tokenize([SEQUENCE])
    frozen = FrozenSubject(subject64, batch)
    z = dictionary.encode(2, frozen.actual.mlp_in[2][0]).dense(12)
    feature = int(z.amax(0).argmax())
    place = int(z[:, feature].argmax())
    outputs = [m.clone() for m in frozen.sources.mlp_out]
    outputs[2][0, place] -= z[place, feature] * dictionary.decoder(2, 2)[feature]
    head = frozen.head_map(place)
    final = [
        frozen.replay(s).final[0, place] for s in (frozen.sources, Sources(frozen.sources.embeddings, tuple(outputs)))
    ]
    falls = (head(final[0]) - head(final[1])).flatten()
    torch.testing.assert_close(un_embedding(recordings, 2, feature), falls - falls.mean(), rtol=1e-7, atol=1e-10)


def share_kept(found: list[Block]) -> float:
    pairs = sum(int(b.together.sum()) for b in found)
    return sum(int((b.kept & b.together).sum()) for b in found) / pairs


def test_a_permuted_dictionary_keeps_no_more_than_the_null_lets():
    """Wires from features of layer 2 to what features of layer 4 read are kept; where decoder rows stand in another
    order, what is kept is no more than the null says."""
    subject = load_subject("bundled:molm", device="cpu")
    dictionary = load_dictionary("bundled:molm-clt", subject)
    given = batches_of(subject, tiny.MOLECULES)
    density = Recordings(Segments(subject, dictionary), given).density
    sources, targets = density[2].topk(24).indices, density[4].topk(24).indices
    sent = dictionary.decoder(2, 2)[sources] + dictionary.decoder(2, 3)[sources]
    dictionary.W_enc[4].data[:, targets] = 4 * torch.nn.functional.normalize(sent).T
    recordings = Recordings(Segments(subject, dictionary), given)
    block = next(b for b in blocks(recordings, 4, targets, [()]) if b.source == 2)
    wires = [bool(block.kept[i, k]) for k, i in enumerate(sources.tolist()) if bool(block.together[i, k])]
    assert len(wires) > 15
    chances = [block.chance(i, k) for k, i in enumerate(sources.tolist()) if bool(block.together[i, k])]
    assert sum(p < 0.05 for p in chances) > 0.6 * len(wires)
    assert sum(wires) / len(wires) > 0.25 > 20 * block.share_kept
    some = torch.cat([targets, (recordings.density[4] > 0).nonzero()[:100, 0]])
    for source in range(4):
        order = permuted(recordings.density[source], 1, (7, source))[0]
        dictionary.W_dec[source].data = dictionary.W_dec[source][order]
    assert share_kept([*blocks(Recordings(Segments(subject, dictionary), given), 4, some, [()], seed=1)]) <= 0.01


def test_the_table_holds_the_largest_edges_above_their_null(rotary):
    recordings = recorded(rotary, tiny.MOLECULES, n_features=200, k=16)
    table = edge_table(recordings, through_heads=True, keep=3)
    assert table.height > 20
    assert table.group_by("layer", "feature").len()["len"].max() == 3
    for layer, feature in table.select("layer", "feature").unique().rows()[:5]:
        found = []
        for block in blocks(recordings, layer, torch.tensor([feature])):
            found += [abs(float(v)) for v in block.value[block.kept]]
        own = table.filter(layer=layer, feature=feature)["gives"].abs().to_list()
        assert own == pytest.approx(sorted(found, reverse=True)[:3], rel=1e-4)


def test_what_has_no_connections_is_refused(rotary):
    """The default autoencoder reads what an MLP gives; neurons stand inside one."""
    given: list[tuple[str, dict[str, Any]]] = [("sae", {}), ("transcoder", {"hookpoint_in": "layers.{}.neuron"})]
    for architecture, own in given:
        dictionary = tiny.random_dictionary(rotary, architecture, **own)
        with pytest.raises(InputError, match="between them stands the MLP's function"):
            Segments(rotary, dictionary)


def test_autoencoders_of_the_stream_and_of_attention(rotary64):
    """What a feature adds to the stream reaches every later layer; features of attention read heads of their layer."""
    for site, expected in (("resid_post", [0, 1]), ("attn_out", [0, 1])):
        place = {f"hookpoint_{side}": f"layers.{{}}.{site}" for side in ("in", "out")}
        recordings = recorded(rotary64, architecture="sae", **place)
        found = [*blocks(recordings, 2, torch.arange(12))]
        assert {b.source for b in found} == {*expected}
        assert all(float(b.value.abs().nan_to_num().max()) > 0 for b in found)
        direct = {b.source for b in found if not b.route}
        assert direct == ({0, 1} if site == "resid_post" else set())

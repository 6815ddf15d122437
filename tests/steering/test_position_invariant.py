"""Position-invariant inference: the same whatever the order of segments; each head sees an order of its own."""

from itertools import permutations

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.interventions import Residuals
from isotrace.steering import AddEdit, Edits
from isotrace.steering.inference import PositionInvariant, Segments, fragments, position_bias
from isotrace.steering.inference.position_bias import moved_tokens, orders_of, reordered
from isotrace.steering.inference.position_invariant import variant
from isotrace.steering.inference.segments import tokens_of
from isotrace.studies.study import bundled_table
from isotrace.subjects.dispatch import patterns_recorded
from isotrace.subjects.subject import load_subject

ROTARY = ("esm-rotary", "esm-token-dropout", "modernbert", "esmc", "llama", "progen")
LEARNED = ("esm-absolute", "bert", "roberta", "albert", "gpt2")
REFUSED = ("deberta-v2", "bart", "t5-relu", "molformer", "smited")
REACTIONS = (
    "CC(=O)O.CN.C1CCOC1>>CC(=O)NC",
    "CCO.OCC.N.N>>CCOCC",  # segments of the same tokens in another order, and one that stands twice
    "O.CS(=O)(=O)Cl>CN>CNS(C)(=O)=O",
)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Tiny subjects that read reactions, float64, by variant."""
    tokenizer = build_tokenizer(["CC(=O)O.CN"], min_count=1, max_length=64)
    tokenizer.add_tokens([">"])
    root, found = tmp_path_factory.mktemp("reactions"), {}

    def load(variant):
        if variant not in found:
            longer = {} if variant.startswith("t5") else {"max_position_embeddings": 64}
            tiny.tiny_model(variant, None, vocab_size=len(tokenizer), **longer).save_pretrained(root / variant)
            tokenizer.save_pretrained(root / variant)
            found[variant] = tiny.in_float64(load_subject(root / variant, domain="reaction"))
        return found[variant]

    return load


def in_every_order(subject, text):
    """(orders, a batch of the text in each, where its tokens stand there `[orders, tokens]`), the text itself first."""
    spans = fragments(text)
    rows = tokens_of(text, subject.tokenize([text]).offsets[0], spans)
    orders = [*{reordered(text, spans, order): order for order in [*permutations(range(len(spans)))][::-1]}.values()]
    orders = sorted(orders)  # of those that give one text, that in which segments alike keep their own order
    batch = subject.tokenize([reordered(text, spans, order) for order in orders])
    return orders, batch, torch.stack([moved_tokens(rows, batch.ids.shape[1], order) for order in orders])


def logits(subject, batch, moved, plan=None):
    """`[orders, tokens, vocabulary]`, in the order of the text's own tokens."""
    found = subject.run(batch, plan=plan).logits
    return found.gather(1, moved[..., None].expand_as(found))


def first_patterns(subject, batch, plan=None):
    """`[orders, heads, query, key]` of layer 0."""
    with patterns_recorded(subject) as patterns:
        subject.run(batch, plan=plan)
    return patterns[subject.attentions[0]]


def in_text_order(pattern, moved):
    return torch.stack([rows[:, at][..., at] for rows, at in zip(pattern, moved, strict=True)])


@pytest.mark.parametrize("text", REACTIONS)
@pytest.mark.parametrize("name", ROTARY + LEARNED)
def test_outputs_do_not_depend_on_the_order_and_one_segment_is_the_plain_model(subjects, name, text):
    subject, plan = subjects(name), PositionInvariant()
    assert variant(subject) == ("rotary" if name in ROTARY else "learned")
    _, batch, moved = in_every_order(subject, text)
    found, plain = logits(subject, batch, moved, plan), logits(subject, batch, moved)
    assert float((found - found[:1]).abs().max()) < 1e-5
    assert float((plain - plain[:1])[1:].abs().amax((1, 2)).min()) > 1e-2
    alone = subject.tokenize([text.replace(".", "")])
    assert torch.equal(subject.run(alone, plan=plan).logits, subject.run(alone).logits)
    assert float((found - plain).abs().max()) > 1e-2
    # beside others, with padding and without segments, a row is what it is alone
    both = subject.tokenize([text, "CC>>O" + "C" * 20])
    rows = subject.run(both, plan=plan).logits
    torch.testing.assert_close(rows[0, : moved.shape[1]], found[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[1], subject.run(both).logits[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ROTARY if n != "esm-token-dropout"])
def test_each_head_and_query_sees_the_text_as_written_in_its_own_order(subjects, name):
    """In layer 0, whose keys know nothing of the order yet, every row of the pattern is that of the plain subject in
    one order of the text: with the segment of the query last, for a separator with that separator last."""
    subject, text = subjects(name), "CC(=O)O.CN.C1CCOC1>>CC"
    orders, batch, moved = in_every_order(subject, text)
    plain = in_text_order(first_patterns(subject, batch), moved)
    one = subject.tokenize([text])
    found = first_patterns(subject, one, PositionInvariant())[0]
    segments = Segments.of(subject, one)
    separators, seen = segments.separators[0].tolist(), set()

    def sorted_apart(rows):
        """Separators are alike, so which of them is which does not count."""
        rows = rows.clone()
        rows[..., separators] = rows[..., separators].sort(-1).values
        return rows

    for query, number in enumerate(segments.group[0].tolist()):
        asking = separators[-1] if number > 3 else query  # which stands in the last gap
        for head in range(len(found)):
            rows = plain[:, head, asking]
            own = found[head, query] * (rows > 0)  # a causal separator does not see what follows in the plain text
            apart = (sorted_apart(own / own.sum(-1, keepdim=True)) - sorted_apart(rows)).abs().amax(-1)
            alike = [order for order, distance in zip(orders, apart.tolist(), strict=True) if distance < 1e-5]
            alike = [order for order in alike if not 0 < number <= 3 or order[-1] == number - 1]
            assert alike, (query, head)
            seen |= {*alike}
    assert len(seen) > 2  # heads and queries differ in what is important


def test_the_nearest_segment_is_the_most_important(subjects):
    """Worked out from weights: softmax(q·k/√d) without positions, its mean over the tokens of a segment."""
    subject, text = subjects("esm-rotary"), "CC(=O)O.CN.C1CCOC1>>CC"
    batch, layer = subject.tokenize([text]), subject.model.esm.encoder.layer[0].attention
    stream = subject.run(batch, capture=["layers.0.resid_pre"]).captured["layers.0.resid_pre"]
    query, key = (
        part(layer.LayerNorm(stream)).unflatten(-1, (2, -1)).transpose(1, 2)[0]
        for part in (layer.self.query, layer.self.key)
    )
    shares = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
    rows = tokens_of(text, batch.offsets[0], fragments(text))
    means = torch.stack([shares[..., a:b].mean(-1) for a, b in rows], -1)
    found = first_patterns(subject, batch, PositionInvariant())[0]
    orders, every, moved = in_every_order(subject, text)
    plain = in_text_order(first_patterns(subject, every), moved)
    inside, used = [t for a, b in rows for t in range(a, b)], set()
    for head in range(2):
        # behind the block the most important is the last; before it, the first
        for at in (0, *range(rows[-1][1], batch.ids.shape[1])):
            order = orders.index(tuple(means[head, at].argsort(descending=at == 0).tolist()))
            used.add(order)
            torch.testing.assert_close(found[head, at, inside], plain[order, head, at, inside], rtol=0, atol=1e-6)
    assert len(used) > 1


@pytest.mark.parametrize("name", LEARNED)
def test_learned_positions_read_the_text_as_written_in_one_order(subjects, name):
    subject, text = subjects(name), "CC(=O)O.CN.C1CCOC1>>CC"
    orders, batch, moved = in_every_order(subject, text)
    found, plain = logits(subject, batch, moved, PositionInvariant()), logits(subject, batch, moved)
    separators = Segments.of(subject, batch).separators[0].tolist()
    rest = [t for t in range(moved.shape[1]) if t not in separators]
    apart = (plain[:, rest] - found[:1, rest]).abs().amax((1, 2))
    assert (apart < 1e-9).sum() == 1
    if name == "bert":  # worked out from weights
        block, tables = subject.model.bert.encoder.layer[0].attention.self, subject.model.bert.embeddings
        words = tables.LayerNorm(tables.word_embeddings(batch.ids[:1]) + tables.token_type_embeddings.weight[0])
        query, key = (p(words).unflatten(-1, (2, -1)).transpose(1, 2)[0] for p in (block.query, block.key))
        shares = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1).mean((0, 1))
        rows = tokens_of(text, batch.offsets[0], fragments(text))
        means = torch.stack([shares[a:b].mean() for a, b in rows])
        assert orders[int(apart.argmin())] == tuple(means.argsort().tolist())


@pytest.mark.parametrize("name", ["esm-rotary", "bert"])
def test_it_nests_with_edits(subjects, name):
    subject = subjects(name)
    direction = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(0))
    plan = Edits((AddEdit(components=Residuals(), layer=0, direction=direction, scale=1.0),)).plan(0.5)
    _, batch, moved = in_every_order(subject, "CN.CCO>>CC")
    with subject.edited(PositionInvariant().on(subject, batch)):
        found = logits(subject, batch, moved, plan)
    assert float((found[0] - found[1]).abs().max()) < 1e-5
    assert not torch.allclose(found, logits(subject, batch, moved, PositionInvariant()), atol=1e-3)
    assert not torch.allclose(found, logits(subject, batch, moved, plan), atol=1e-3)


@pytest.mark.parametrize("name", ["esm-rotary", "albert", "llama", "gpt2"])
def test_the_bias_is_there_before_and_gone_after(subjects, name):
    subject = subjects(name)
    texts = [*REACTIONS, "CCO>>CC", "C.N", "CC..N>>C", "N.N.N>>CC"]
    before, after = (position_bias(subject, texts, plan, tokens=4) for plan in (None, PositionInvariant()))
    assert before.score > 1e-3
    assert after.score < 1e-6
    assert [row.index for row in before.rows] == ([0, 1, 2] if subject.objective == "causal" else [0, 1, 2, 4])
    assert [(row.tokens, row.orders) for row in before.rows][:3] == [(4, 5), (4, 5), (4, 1)]
    reasons = {index: why for index, _, why in before.rejects}
    assert "one segment" in reasons[3]
    assert "several alike" in reasons[6]
    assert "holds no token" in reasons[5]
    if subject.objective == "causal":
        assert "nothing stands behind" in reasons[4]


def test_a_distance_worked_out_by_hand(subjects):
    """Of two segments there is one other order, and of a masked subject each token is masked alone."""
    subject, text = subjects("esm-rotary"), "CN.CCO>>CC"
    bias, apart = position_bias(subject, [text], tokens=99), []
    losses = []
    _, batch, moved = in_every_order(subject, text)
    separator = text.index(".") + 1
    for place in (p for p in range(1, batch.ids.shape[1] - 1) if p != separator):
        ids = batch.ids.clone().scatter(1, moved[:, place : place + 1], subject.mask_id)
        found = logits(subject, batch.with_ids(ids), moved)[:, place].softmax(-1)
        losses.append(-float(found[:, batch.ids[0, place]].log().mean()))
        apart.append(float((found[0] - found[1]).abs().sum() / 2))
    assert (bias.rows[0].tokens, bias.rows[0].orders) == (len(apart), 1)
    assert bias.score == pytest.approx(sum(apart) / len(apart), rel=1e-6)
    assert bias.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_orders_differ_in_their_text():
    rng = np.random.default_rng(0)
    assert sorted(orders_of("abb", 9, rng)) == [(0, 1, 2), (1, 0, 2), (1, 2, 0)]
    assert orders_of("abb", 9, rng)[0] == (0, 1, 2)
    drawn = orders_of("abcdeef", 5, rng)
    assert len(drawn) == len({"".join("abcdeef"[i] for i in order) for order in drawn}) == 6
    assert all(order.index(4) < order.index(5) for order in drawn)
    assert orders_of("aaa", 9, rng) == [(0, 1, 2)]


@pytest.mark.nightly
def test_a_published_model_of_reactions():
    try:
        subject = load_subject("pypi:rxnmapper")
    except SubjectError as error:
        if "cannot download" not in str(error):  # a wheel with another hash is a failure
            raise
        pytest.skip(f"the wheel is neither cached nor can it be downloaded: {error}")
    texts = [text for text in bundled_table("reactions")["reaction"].to_list() if len(fragments(text)) > 1][:200:20]
    before, after = (position_bias(subject, texts, plan) for plan in (None, PositionInvariant()))
    assert before.score > 1e-3
    assert after.score < 1e-5
    assert len(after.rows) == len(texts)


def test_what_is_refused(subjects):
    for name in REFUSED:
        subject = subjects(name)
        with pytest.raises(SubjectError, match=f"cannot set the positions of {subject.family.model_type}, wh"):
            subject.run(subject.tokenize(["CN.CC>>C"]), plan=PositionInvariant())
    subject = subjects("bert")
    batch = subject.tokenize(["CN.CC>>C"])
    for spans, said in (
        (((0, 2), (4, 5)), "more than one and the same token"),
        (((0, 3), (1, 2)), "out of order"),
        (((0, 0), (1, 2)), "holds no token"),
        ((), "has no segment"),
    ):
        with pytest.raises(InputError, match=said):
            PositionInvariant(lambda _, spans=spans: spans).on(subject, batch)
    resolved = PositionInvariant().on(subject, batch)
    with pytest.raises(InputError, match="resolve them on the batch"), subject.edited(resolved):
        subject.run(subject.tokenize(["CN"]))
    rotary = subjects("esm-rotary")
    with pytest.raises(InputError, match="resolve them"), rotary.edited(PositionInvariant().on(rotary, batch)):
        rotary.run(rotary.tokenize(["CN.CC>>C"] * 2))
    with pytest.raises(InputError, match="known of a batch only"), subject.edited(PositionInvariant()):
        pass
    # spans of the user's own: neighbours with nothing between them
    both = PositionInvariant(lambda text: ((0, 1), (1, 2)))
    pair = [subject.run(subject.tokenize([text]), plan=both).logits[0] for text in ("CN.CC>>C", "NC.CC>>C")]
    torch.testing.assert_close(pair[0][[0, 1, 2, 3]], pair[1][[0, 2, 1, 3]], rtol=0, atol=1e-5)

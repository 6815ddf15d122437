"""Generators: what they write is drawn from what the subject says under the edit of the round, and all is counted."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.interventions import Add, Intervention, Plan, Residuals, Select, Set, Tokens
from isotrace.steering.decoding import DECODERS
from isotrace.steering.decoding.beam import Beam
from isotrace.steering.decoding.gibbs import Gibbs
from isotrace.steering.decoding.likelihood_ranked import LikelihoodRanked
from isotrace.steering.decoding.mask_predict import MaskPredict
from isotrace.steering.decoding.run import Run
from isotrace.steering.decoding.sample import Sample
from isotrace.steering.decoding.scoring import log_likelihoods
from isotrace.subjects.subject import Batch, load_subject

WRITING = ("gpt2", "llama", "progen", "bart", "t5-relu", "t5-gated", "translating")
LETTERS = ("C", "N", "O")
MADE = {
    "gibbs": Gibbs(n=2, sweeps=2, seed=1),
    "mask_predict": MaskPredict(n=2, rounds=3, share=0.5),
    "likelihood_ranked": LikelihoodRanked(n=3, combine=2),
    "sample": Sample(n=2, max_new=4),
    "beam": Beam(n=2, width=3, max_new=3),
}


def others(subject, *kept):
    """All words of the vocabulary but `kept`: what is to be forbidden, so that little is left to write."""
    return tuple(word for word in subject.tokenizer.get_vocab() if word not in kept and word not in special(subject))


def special(subject):
    return subject.tokenizer.all_special_tokens


@pytest.fixture(scope="module")
def writing(tmp_path_factory, folders):
    root = tmp_path_factory.mktemp("translating")
    model = tiny.tiny_model("bart", translating=True, decoder_start_token_id=0)
    places = folders | {"translating": tiny.save_subject(model, root / "bart")}
    return {name: tiny.in_float64(tiny.load_tiny(places[name])) for name in WRITING}


@pytest.fixture(scope="module")
def masked(folders):
    return tiny.in_float64(tiny.load_tiny(folders["esm-rotary"]))


def moved(subject, layers, positions=None, seed=0):
    direction = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Plan((Intervention(Residuals(), Add(3 * direction), Select(layers, None, positions)),))


def test_every_generator_is_tried():
    assert set(MADE) == set(DECODERS)
    assert all(one.name == name for name, one in MADE.items())


@pytest.mark.parametrize("name", MADE)
def test_a_start_that_cannot_be_read_is_a_reject_and_changes_nothing_else(name, masked, writing):
    subject = masked if "masked" in MADE[name].objectives else writing["bart"]
    alone, with_others = (MADE[name](subject, starts) for starts in (["CCO"], ["CCO", "CC(", "C?é"]))
    assert alone.rows == with_others.rows
    assert (alone.forwards, alone.seen) == (with_others.forwards, with_others.seen)
    assert [row for row, *_ in with_others.rejects] == [1, 2]
    assert all(why for *_, why in with_others.rejects)
    assert (alone.distinct, alone.valid) == (len(alone.seen), sum(why is None for why in alone.seen.values()))
    frame = alone.frame()
    assert frame["sequence"].to_list() == [row.sequence for row in (*alone.first, *alone.rows)]
    for text, valid in frame.select("sequence", "valid").iter_rows():
        assert valid == (alone.seen[text] is None)
    with pytest.raises(InputError, match=r"no start can be used; first reason: .*CC\("):
        MADE[name](subject, ["CC("])


@pytest.mark.parametrize("name", MADE)
def test_an_empty_plan_changes_nothing_and_a_round_has_its_own(name, masked, writing):
    subject = masked if "masked" in MADE[name].objectives else writing["gpt2"]
    plain = MADE[name](subject, ["CCOC"])
    assert plain.rows == MADE[name](subject, ["CCOC"], Plan()).rows
    rounds = []
    moving = moved(subject, (1,))

    def edit(number):
        rounds.append(number)
        return moving if number == 1 else Plan()

    assert MADE[name](subject, ["CCOC"], edit).rows != plain.rows
    assert rounds[0] == 1
    assert sorted(rounds) == rounds


@pytest.mark.parametrize("which", ["positions", "real", "generated"])
@pytest.mark.parametrize("name", WRITING)
def test_a_token_is_read_as_by_teacher_forcing_with_the_edit_on(name, which, writing):
    """Also of positions before it, and of the encoder, whose states are kept from one token to the next."""
    subject = writing[name]
    stacked = len(subject.stack_sizes) > 1
    layers = (0, subject.stack_sizes[0]) if stacked else (0,)
    where = Select(layers, None, (1,)) if which == "positions" else Tokens(which, layers=layers)
    plan = Plan.of(*(replace(one, where=where) for one in moved(subject, layers)))
    run = Run(subject, Sample(), plan)
    (start,) = run.starts(["CCOC"])
    row = [*run.beginning(start, ""), *map(subject.token_id, "CONCO")]
    begun = len(run.beginning(start, ""))
    seen = torch.cat([run.read_next(start, [row[:n], row[:n]], n, begun) for n in range(2, len(row) + 1)])
    ids = torch.tensor([[*row[1:], 5] if subject.objective == "denoising" else row])
    sites = torch.arange(ids.shape[1])[None] >= begun - (subject.objective == "denoising")
    pair = Batch(ids, torch.ones_like(ids, dtype=torch.bool), (), (), sites, start.batch if stacked else None)
    whole = subject.run(pair, plan=plan).logits[0, 1:]
    torch.testing.assert_close(seen, whole.repeat_interleave(2, 0), rtol=0, atol=1e-5)
    plain = subject.run(pair).logits[0, 1:]
    assert float((whole - plain)[begun if which == "generated" else 0 :].abs().amax(-1).min()) > 1e-3  # all hear of it
    assert run.forwards == 2 * (len(row) - 1) + stacked


@pytest.mark.parametrize("name", ["gpt2", "translating"])
def test_a_sample_is_scored_as_it_is_written(name, writing):
    subject = writing[name]
    found = Sample(n=3, max_new=5, forbidden=others(subject, *LETTERS))(subject, ["CC"])
    start = subject.tokenize(["CC"]) if name == "translating" else None
    barred = torch.tensor([i for i in range(252) if subject.tokens(torch.tensor([i]))[0] not in (*LETTERS, "<eos>")])
    for design in found.rows:
        written = [0, *map(subject.token_id, design.sequence), *([2] if design.ended else [])]
        ids = torch.tensor([written])
        batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), (), (), source=start)
        said = subject.run(batch).logits[0, :-1].index_fill(-1, barred, -torch.inf).log_softmax(-1)
        own = said.gather(1, ids[0, 1:, None])[:, 0]
        assert design.score == pytest.approx(float(own[0 if start is not None else 2 :].sum()), abs=1e-9)
        assert design.round == len(written) - 1 - (0 if start is not None else 2)


def test_samples_are_as_frequent_as_the_subject_says(writing):
    subject = writing["gpt2"]
    found = Sample(n=600, max_new=1, forbidden=others(subject, *LETTERS))(subject, ["CC"])
    allowed = [subject.token_id(letter) for letter in LETTERS] + [2]
    p = subject.run(Batch(torch.tensor([[0, 5, 5]]), torch.ones(1, 3).bool(), (), ())).logits[0, 2, allowed].softmax(-1)
    texts = [row.sequence for row in found.rows]
    share = np.asarray([texts.count(f"CC{letter}") for letter in LETTERS] + [texts.count("CC")]) / 600
    assert np.abs(share - p.numpy()).max() < 4 * 0.5 / 600**0.5
    sure = Sample(n=2, max_new=1, temperature=0, forbidden=others(subject, *LETTERS))(subject, ["CC"])
    assert {row.sequence for row in sure.rows} == {f"CC{(*LETTERS, '')[int(p.argmax())]}"}
    small = Sample(n=50, max_new=1, top_p=1e-6, forbidden=others(subject, *LETTERS))(subject, ["CC"])
    assert {row.sequence for row in small.rows} == {row.sequence for row in sure.rows}


@pytest.mark.parametrize(("name", "penalty"), [("llama", 1.0), ("bart", 0.0)])
def test_a_wide_beam_finds_what_enumeration_finds(name, penalty, writing):
    subject, n = writing[name], 4
    run = Run(subject, Sample(forbidden=others(subject, "C", "N")), Plan())
    (start,) = run.starts(["C"])
    begin, every = run.beginning(start, ""), {}
    for length in range(1, 4):
        for tail in itertools.product((5, 6, 2), repeat=length):
            if 2 in tail[:-1] or (length < 3 and tail[-1] != 2):
                continue
            rows = [[*begin, *tail[:k]] for k in range(length)]
            said = [run.allowed(run.read_next(start, [row], 1), may_end=True).log_softmax(-1)[0] for row in rows]
            total = sum(float(one[token]) for one, token in zip(said, tail, strict=True))
            every[tail] = total / length**penalty
    best = sorted((tail for tail in every if tail[-1] == 2), key=lambda tail: -every[tail])[:n]
    beam = Beam(n=n, width=16, max_new=3, length_penalty=penalty, forbidden=others(subject, "C", "N"))
    found = beam(subject, ["C"])
    first = "C" if name == "llama" else ""
    assert [row.sequence for row in found.rows] == [first + "".join("CN"[t - 5] for t in tail[:-1]) for tail in best]
    assert [row.score for row in found.rows] == pytest.approx([every[tail] for tail in best], abs=1e-9)
    assert all(row.ended for row in found.rows)


def test_a_prefix_is_written_first(writing):
    found = Sample(n=3, max_new=2, prefix="NN")(writing["bart"], ["CCO"])
    assert all(row.sequence.startswith("NN") for row in found.rows)


@pytest.mark.parametrize("kind", ["gibbs", "mask_predict"])
def test_a_site_is_drawn_from_its_conditional(kind, masked):
    """One site, many chains; the rest of the start stands."""
    forbidden = others(masked, *LETTERS)
    shared = {"n": 256, "sites": (2,), "forbidden": forbidden}
    made = Gibbs(indels=0, **shared) if kind == "gibbs" else MaskPredict(top_p=1, rounds=1, **shared)
    found = made(masked, ["CCO"])
    batch = masked.tokenize(["CCO"])
    logits = masked.run(masked.prepare_prediction(batch, 2)[0]).logits[0, 2]
    p = logits[[masked.token_id(letter) for letter in LETTERS]].softmax(-1).numpy()
    texts = [row.sequence for row in found.rows]
    share = np.asarray([texts.count(f"C{letter}O") for letter in LETTERS]) / len(texts)
    assert len(texts) == found.forwards == 256
    assert np.abs(share - p).max() < 4 * 0.5 / 256**0.5


def test_gibbs_inserts_and_deletes_and_undoes_what_cannot_be_read(masked):
    found = Gibbs(n=8, sweeps=4, indels=0.8, seed=3, forbidden=others(masked, *LETTERS, "F"))(masked, ["CCOCC"])
    lengths = {len(masked.tokenize([row.sequence]).ids[0]) - 2 for row in found.rows}
    assert min(lengths) < 5 < max(lengths)
    assert all(row.valid for row in found.rows)
    assert found.distinct > found.valid  # others were proposed and undone
    fixed = Gibbs(n=4, sweeps=3, sites=(2,), seed=3)(masked, ["NCO"])
    assert all(row.sequence.startswith("N") and row.sequence.endswith("O") for row in fixed.rows)


def test_mask_predict_shows_its_first_round(masked):
    found = MaskPredict(n=3, rounds=4, share=0.25, sites=(1, 2, 3, 4))(masked, ["CCOCC"])
    assert [row.round for row in found.first] == [1] * 3
    assert [row.round for row in found.rows] == [4] * 3
    assert found.frame()["round"].to_list() == [1] * 3 + [4] * 3
    assert found.forwards == 12
    one = MaskPredict(n=3, rounds=1, share=0.25, sites=(1, 2, 3, 4))(masked, ["CCOCC"])
    assert [replace(row, early=True) for row in one.rows] == [*found.first]
    assert not one.first
    by_row = MaskPredict(sites={1: (1,)}, rounds=1)(masked, ["CCO", "CCN"])
    assert [(row, why[:18]) for row, _, why in by_row.rejects] == [(0, "no sites are named")]
    assert [row.sequence[-2:] for row in by_row.rows] == ["CN"]


@pytest.mark.parametrize("score", ["masked", "wild_type", "pseudo"])
def test_mutations_are_ranked_by_what_the_steered_subject_says(score, masked):
    text, plan = "CCOCN", moved(masked, (0,), positions=(3,))
    batch = masked.tokenize([text])
    kept = LikelihoodRanked(n=30, score=score, combine=3, forbidden=others(masked, *LETTERS))
    found = kept(masked, [text], plan)
    singles = {row.sequence: row.score for row in found.rows if sum(map(str.__ne__, row.sequence, text)) == 1}
    assert len(singles) == 2 * len(text)
    for sequence, value in singles.items():
        (site,) = [i for i in range(len(text)) if sequence[i] != text[i]]
        read = batch if score == "wild_type" else masked.prepare_prediction(batch, site + 1)[0]
        logits = masked.run(read, plan=plan).logits[0, site + 1]
        expected = float(logits[masked.token_id(sequence[site])] - logits[masked.token_id(text[site])])
        if score == "pseudo":
            expected = np.subtract(*log_likelihoods(masked, [sequence, text], edit=plan).total)
        assert value == pytest.approx(expected, abs=1e-9)
    ordered = [*singles.values()]
    assert ordered == sorted(ordered, reverse=True)
    for row in found.rows[len(singles) :]:
        changed = [i for i in range(len(text)) if row.sequence[i] != text[i]]
        best = [max(v for s, v in singles.items() if s[i] != text[i]) for i in changed]
        assert 2 <= len(changed) <= 3
        assert row.score == pytest.approx(sum(best), abs=1e-9)
        assert min(best) > 0
    passes = {"masked": 5, "wild_type": 1, "pseudo": 5 + 11 * 5}
    assert found.forwards == passes[score]


def test_likelihoods_of_pairs(writing):
    subject = writing["translating"]
    found = log_likelihoods(subject, ["CCO", "CN"], ["CC", "CCCC"])
    for value, target, source in zip(found.total, ("CCO", "CN"), ("CC", "CCCC"), strict=True):
        pair = subject.tokenize([target], [source])
        said = subject.run(pair).logits[0].log_softmax(-1)
        assert value == pytest.approx(float(said[:-1].gather(1, pair.ids[0, 1:, None]).sum()), abs=1e-9)
    assert found.n_tokens.tolist() == [4, 3]
    alone = log_likelihoods(subject, ["CCO"])
    assert alone.total[0] == pytest.approx(log_likelihoods(subject, ["CCO"], ["CCO"]).total[0])
    assert alone.total[0] != pytest.approx(found.total[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Beam(temperature=0.5), "draws nothing"),
        (lambda: Sample(sites=(1,)), "leave out the sites"),
        (lambda: Gibbs(n=0), "give at least 1"),
        (lambda: Gibbs(sweeps=0), "no chain"),
        (lambda: MaskPredict(share=0), "change nothing"),
        (lambda: LikelihoodRanked(score="best"), "no score 'best'"),
        (lambda: LikelihoodRanked(combine=0), "are none"),
        (lambda: Beam(n=6), "width ≥ n"),
        (lambda: Sample(max_new=0), "new tokens are none"),
        (lambda: Sample(top_p=0), "cannot be sampled"),
    ],
)
def test_settings_that_mean_nothing(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_who_is_refused(masked, writing, folders):
    with pytest.raises(SubjectError, match=r"needs a masked subject .* is causal: take sample or beam"):
        Gibbs()(writing["gpt2"], ["CC"])
    with pytest.raises(SubjectError, match="take gibbs or mask_predict or likelihood_ranked"):
        Sample()(masked, ["CC"])
    with pytest.raises(InputError, match="every token is forbidden"):
        Gibbs(forbidden=others(masked))(masked, ["CC"])
    with pytest.raises(InputError, match="'Qq' is no token"):
        Gibbs(forbidden=("Qq",))(masked, ["CC"])
    with pytest.raises(InputError, match="position 9 cannot change: this start has positions 1 to 2"):
        Gibbs(sites=(9,))(masked, ["CC"])
    with pytest.raises(InputError, match="names no domain"):
        Gibbs()(load_subject(folders["esm-rotary"]), ["CC"])
    with pytest.raises(SubjectError, match="no encoder beside a decoder"):
        masked.tokenize(["CC"], ["CC"])
    with pytest.raises(InputError, match="3 sources for 2 sequences"):
        writing["bart"].tokenize(["CC", "CC"], ["C", "C", "C"])
    pair = writing["bart"].tokenize(["CC", "CC"], ["C"])
    with pytest.raises(InputError, match="2 sources for 3 rows"):
        writing["bart"].run(replace(pair, ids=pair.ids[[0, 0, 0]], mask=pair.mask[[0, 0, 0]], source=pair))


def test_a_constant_subject_writes_the_same_everywhere(masked):
    """What the plan makes of the last layer is all that the head reads."""
    plan = Plan((Intervention(Residuals(), Set(0.0), Select((masked.n_layers - 1,))),))
    logits = masked.run(masked.tokenize(["CC"]), plan=plan).logits[0, 1]
    (best,) = [max(LETTERS, key=lambda letter: float(logits[masked.token_id(letter)]))]
    made = MaskPredict(n=1, rounds=1, share=1, temperature=0, top_p=1, forbidden=others(masked, *LETTERS))
    assert made(masked, ["CCOC"], plan).rows[0].sequence == best * 4

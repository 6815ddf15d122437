"""Tracing maps: recovery against plain hooks, both its ends by construction, what is dropped, injection, the verb."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import isotrace
import tiny
from isotrace.attribution.maps.answer import Answer
from isotrace.attribution.maps.injection import INPUTS, RANDOM, STRENGTHS, injected, injection
from isotrace.attribution.maps.many import Maps, One
from isotrace.attribution.maps.pair import EVERY, NULL, MapSettings, Pair, pair_of, position_classes
from isotrace.attribution.maps.recovery import COMPONENTS, WINDOWS, recovery, window
from isotrace.base.errors import InputError, SubjectError
from isotrace.cli import main
from isotrace.cli.map import SHOWN, show
from isotrace.domains.domain import domain_of
from isotrace.interventions import Plan
from isotrace.studies.worlds.planted_subjects import copy
from isotrace.subjects.targets import parse_target
from isotrace.verbs.map import MapRequest

TEXT, PLACE = "CC(=O)N1CCC1", 5
MOLECULE = domain_of("molecule")


def pair(subject, target=f"mask:{PLACE}", text=TEXT, **settings) -> Pair:
    batch = subject.tokenize([text])
    reading = MOLECULE.read(text, subject.tokens(batch.ids[0]), batch.offsets[0])
    goal = parse_target(target, subject, batch)
    return pair_of(MOLECULE, subject, reading, goal.prepare(subject, batch), goal, MapSettings(**settings))


def plain(pair: Pair, kind: str, layers, positions) -> float:
    """The answer of the corrupt run, with hooks on the model's own modules."""
    subject, model = pair.subject, pair.subject.model
    names = {"attention": "attn_out", "mlp": "mlp_out", "residual": "resid_post"}
    modules = [subject.hookpoint(f"layers.{layer}.{names[kind]}")[0] for layer in layers]
    kept: dict[torch.nn.Module, torch.Tensor] = {}
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731

    def keep(module, _, output):
        kept[module] = first(output)

    def put(module, _, output):
        new = first(output).clone()
        new[:, [*positions]] = kept[module][:, [*positions]]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    for hook, batch in ((keep, pair.clean), (put, pair.corrupt)):
        handles = [module.register_forward_hook(hook) for module in modules]
        with torch.no_grad():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
        for handle in handles:
            handle.remove()
    at = pair.answer.places(subject)[0]
    return float(logits[0, at].softmax(-1)[pair.answer.positive])


@pytest.mark.every_family
def test_every_stream_restored_is_the_clean_run(subject64):
    """Of encoder–decoders, whose decoder reads the corrupt encoder too, behind the last layer alone."""
    causal = subject64.objective == "causal"
    found = pair(subject64, corruption="exchange" if causal or subject64.mask_id is None else "mask")
    every = tuple(range(found.clean.ids.shape[1]))
    r = recovery(found, [every, ()])
    assert r.shape == (len(COMPONENTS), len(WINDOWS), 2, subject64.n_layers)
    assert np.isfinite(r).all()
    np.testing.assert_allclose(r[:, :, 1], 0, atol=1e-9)
    start = 0 if len(subject64.stack_sizes) == 1 else -1
    np.testing.assert_allclose(r[-1, 0, 0, start:], 1, atol=1e-8)


@pytest.mark.parametrize(("name", "corruption"), [("bert", "mask"), ("gpt2", "exchange")])
def test_a_batch_of_patches_is_a_loop_over_plain_hooks(folders, double, name, corruption):
    subject = tiny.in_float64(tiny.load_tiny(folders[name]))
    found = pair(subject, corruption=corruption)
    sets = [found.cause, (*found.classes["answer"], 1)]
    r, n = recovery(found, sets), subject.n_layers
    for i, kind in enumerate(COMPONENTS):
        for (w, width), (s, positions), layer in (
            (w, s, k) for w in enumerate(WINDOWS) for s in enumerate(sets) for k in range(n)
        ):
            value = plain(found, kind, window(layer, width, n), positions)
            assert r[i, w, s, layer] == pytest.approx((value - found.values[1]) / found.moved, abs=1e-8)


def test_the_map_of_a_planted_copy_head(tmp_path):
    """… A B … A → B: what stands behind A is the cause. Layer 0 leaves it there, a head of layer 1 moves it to the last
    token, and that layer's MLP turns it into the answer; nothing else carries it."""
    subject = copy(tmp_path, 2, 0).subject
    last, behind = 7, 2  # <cls> stands in front
    clean, corrupt = subject.tokenize(["CONSPFC"]), subject.tokenize(["CINSPFC"])
    ids = map(subject.token_id, "OI")
    answer = Answer("diff", "diff", "", "logit", last, *ids)
    with torch.no_grad():
        p = [float(answer.value(subject, b, answer.hidden(subject, b))) for b in (clean, corrupt)]
    assert p[0] > 0.7 > 0.3 > p[1]
    others = tuple(i for i in range(clean.ids.shape[1]) if i not in (last, behind))
    found = Pair(subject, answer, clean, corrupt, Plan(), (behind,), {}, (), (p[0], p[1]), 0.0)
    r = recovery(found, [(behind,), (last,), others])[:, 0]
    expected = np.zeros_like(r)
    expected[0, 1, 1] = expected[1, 1, 1] = 1  # attention and MLP of layer 1, at the last token
    expected[2, 0, 0] = expected[2, 1, 1:] = 1  # the stream at the cause behind layer 0, then at the last token
    np.testing.assert_allclose(r, expected, atol=0.05)


def test_noise_on_embeddings_is_undone_by_the_first_stream(rotary64):
    found = pair(rotary64, corruption="noise")
    assert torch.equal(found.clean.ids, found.corrupt.ids)
    assert len(found.noise) == 1
    with torch.no_grad(), rotary64.edited(found.noise):
        noisy = found.answer.value(rotary64, found.clean, found.answer.hidden(rotary64, found.clean))
    assert float(noisy[0]) == pytest.approx(found.values[1], abs=1e-12)
    every = tuple(range(found.clean.ids.shape[1]))
    np.testing.assert_allclose(recovery(found, [every])[-1, 0, 0], 1, atol=1e-8)


def test_the_cause_is_the_run_that_moves_the_answer_most(rotary64):
    found = pair(rotary64, span=2)
    probabilities = {}
    spans = [(p, p + 1) for p in range(1, len(TEXT)) if PLACE not in (p, p + 1)]
    for span in [(), *spans]:
        ids = found.clean.ids.clone()
        ids[0, [*span]] = rotary64.mask_id
        with torch.no_grad():
            logits = rotary64.model(input_ids=ids, attention_mask=found.clean.mask.long()).logits[0, PLACE]
        probabilities[span] = float(logits.softmax(-1)[found.answer.positive])
    fall = {span: abs(probabilities[()] - probabilities[span]) for span in spans}
    assert found.cause == max(fall, key=fall.get)
    assert found.values == pytest.approx((probabilities[()], probabilities[found.cause]), abs=1e-12)
    others = [value for span, value in fall.items() if not {*span} & {*found.cause}]
    assert found.elsewhere == pytest.approx(np.mean(others), abs=1e-12)
    assert not any({*null} & {*found.cause, PLACE} for null in found.nulls)


def test_every_token_is_in_one_class(rotary64):
    found = pair(rotary64)
    assert sorted(p for at in found.classes.values() for p in at) == list(range(found.clean.ids.shape[1]))
    assert {"cause", "answer", "special tokens"} <= {*found.classes}
    batch = rotary64.tokenize(["C/C=C1CC(C)C1"])
    reading = MOLECULE.read("C/C=C1CC(C)C1", rotary64.tokens(batch.ids[0]), batch.offsets[0])
    named = position_classes(MOLECULE, reading, (1,), (9,))
    assert [*named] == ["cause", "answer", "special tokens", "bonds", "other atoms", "ring digits", "branches"]


def test_a_causal_subject_has_causes_before_its_answer(causals):
    subject = causals["gpt2"]
    with pytest.raises(SubjectError, match="fills no masks: corrupt by exchange"):
        pair(subject)
    found = pair(subject, corruption="exchange", least=1e-9)
    assert max(found.cause) < found.classes["answer"][0] < PLACE + 1
    assert found.classes["answer"] == (subject.reading_position(PLACE),)
    with pytest.raises(InputError, match="no run of 3 tokens"):
        pair(subject, "mask:3", corruption="exchange")


def test_answers_are_probabilities_or_the_target_itself(rotary64):
    batch = rotary64.tokenize([TEXT])
    goal = parse_target("diff:5:N:C", rotary64, batch)
    clean, answer = goal.prepare(rotary64, batch), Answer.of(goal)
    with torch.no_grad():
        hidden = goal.hidden(rotary64, clean)
        value, right = answer.read(rotary64, clean, hidden)
        assert float(value) == pytest.approx(float(torch.sigmoid(goal.value(rotary64, clean, hidden))))
        assert bool(right) == (float(value) > 0.5)
        probe = Answer.of(tiny.make_target("probe", rotary64, batch))
        assert (answer.measure, probe.measure, probe.places(rotary64)) == ("probability", "1", ())


def test_injection_adds_what_it_says(rotary64):
    found = pair(rotary64)
    values = injected(found, 0, (0,))
    assert values.shape == (len(INPUTS), 2, 1 + len(STRENGTHS), 1 + RANDOM)
    np.testing.assert_allclose(values[:, 1, 0], np.asarray(found.values)[:, None].repeat(1 + RANDOM, 1), atol=1e-12)
    modules = [rotary64.hookpoint(f"layers.{layer}.resid_post")[0] for layer in range(rotary64.n_layers)]
    h = {}

    def keep(_, __, output):
        h["own"] = (output[0] if isinstance(output, tuple) else output)[0, found.cause[-1]]

    def add(_, __, output):
        new = (output[0] if isinstance(output, tuple) else output).clone()
        new[0, found.cause[-1]] += STRENGTHS[2] * h["own"]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    for hook, where in ((keep, modules[:1]), (add, modules[1:])):
        handles = [module.register_forward_hook(hook) for module in where]
        with torch.no_grad():
            logits = rotary64.model(input_ids=found.clean.ids, attention_mask=found.clean.mask.long()).logits
        for handle in handles:
            handle.remove()
    p = float(logits[0, PLACE].softmax(-1)[found.answer.positive])
    assert values[0, 1, 3, 0] == pytest.approx(p, abs=1e-10)


def made(rotary, n=6, strength=0.3):
    """Maps of pairs whose recovery at the residual stream of the cause is known: 1 in layer 1, else `strength`."""
    found = pair(rotary, span=2)
    classes = ("cause", "answer", EVERY, NULL)
    ones = []
    for i in range(n):
        recovered = np.zeros((3, 2, 4, rotary.n_layers))
        recovered[2, :, 0] = strength
        recovered[2, :, 0, 1] = 1
        recovered[0, :, 1, 2] = i
        ones.append(
            One(found, classes if i else classes[:1] + classes[2:], recovered if i else recovered[:, :, [0, 2, 3]])
        )
    return Maps(ones, [str(i // 2) for i in range(n)], MapSettings(n_bootstrap=200))


def test_means_are_over_pairs_that_have_the_class_and_intervals_over_sequences(rotary64):
    maps = made(rotary64)
    means = maps.means(maps.values)
    assert means[0, 0, 0, 1, 2] == pytest.approx(np.mean([1, 2, 3, 4, 5]))
    drawn = {round(float(x), 9) for x in means[1:, 0, 0, 1, 2]}
    by_sequence = [[1.0], [2.0, 3.0], [4.0, 5.0]]  # pair 0 has no answer
    possible = set()
    for draw in np.ndindex(3, 3, 3):
        values = [v for i in draw for v in by_sequence[i]]
        possible.add(round(float(np.mean(values)), 9))
    assert drawn <= possible
    assert len(drawn) > 3
    assert maps.peak(np.ones(6, dtype=bool)) == 1
    one = replace(maps, sequences=["0"] * 6)
    assert np.isnan(one.bounds(one.means(one.values))).all()


def test_layer_and_strength_are_chosen_without_the_held_out_pairs(rotary64):
    maps, held = made(rotary64), np.asarray([0, 0, 0, 0, 1, 1], dtype=bool)
    found = injection(maps, held)
    assert (found.layer, found.n_validation, found.n_held) == (1, 4, 2)
    spoiled = [
        replace(one, recovered=one.recovered * (-5 if out else 1)) for one, out in zip(maps.ones, held, strict=True)
    ]
    assert repr(injection(replace(maps, ones=spoiled), held)) == repr(found)  # one held-out sequence: NaN as interval
    assert "only one" in injection(maps, None).reason


@pytest.fixture(scope="module")
def world(folders, tmp_path_factory):
    return isotrace.load_subject(folders["esm-rotary"], domain="molecule")


ROWS = ["CC(=O)N1CCC1", "CCOCCN", "c1ccccc1O", "CC(=O)NCCO", "", "C", "CCCC<b>"]


@pytest.fixture(scope="module")
def mapped(world, tmp_path_factory):
    data = pl.DataFrame({"smiles": ROWS, "name": [f"<img src=x onerror={i}>" for i in range(len(ROWS))]})
    out = tmp_path_factory.mktemp("map") / "out"
    return isotrace.tracing_map(world, data, masks=2, span=2, least=1e-3, bootstrap=50, out=out), out


def test_what_is_found_is_counted_saved_and_read_again(mapped):
    result, out = mapped
    summary, pairs = result.to_dict(), result.tables["pairs"]
    n = summary["n"]
    assert n["pairs"] == pairs.height == 8
    assert n["kept"] == pairs["kept"].sum() == (pairs["moved"].abs() >= 1e-3).sum()
    assert 0 < n["dropped"] == 8 - n["kept"] < 7, sorted(pairs["moved"].abs())
    assert [row["index"] for row in summary["rejects"]] == [4, 5, 6]
    assert all(row["reason"] for row in summary["rejects"])
    frame = result.to_frame()
    assert frame.height == 3 * 2 * frame["class"].n_unique() * 3
    stream = frame.filter((pl.col("component") == "residual") & (pl.col("class") == EVERY) & (pl.col("window") == 1))
    assert stream["recovery"].to_list() == pytest.approx([1] * 3, abs=1e-4)
    assert summary["moved"] == pytest.approx(pairs["moved"].abs().mean())
    again = isotrace.load(out)
    assert again == result
    assert len(repr(again)) <= 1_000
    page = (out / "report.html").read_text()
    assert "<img src=x" not in page
    assert "CCCC<b>" not in page
    assert page.count("<svg") == 6


def test_both_ways_to_ask_give_the_same(mapped, folders, tmp_path, capsys, monkeypatch):
    result, out = mapped
    data = tmp_path / "data.csv"
    data.write_text("smiles\n" + "\n".join(f'"{row}"' for row in ROWS) + "\n")
    given = ["map", str(folders["esm-rotary"]), str(data), "--domain", "molecule", "--masks", "2", "--span", "2"]
    monkeypatch.setattr(sys, "argv", ["isotrace", *given, "--least", "1e-3", "--bootstrap", "50", "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    found = json.loads(capsys.readouterr().out)
    own = result.to_dict()
    for key in ("map", "injection", "verdict", "moved", "n"):
        assert found[key] == own[key], key
    show(own, SimpleNamespace(out=out))
    said = capsys.readouterr().out
    assert all(f"{component}, {name}" in said for component in COMPONENTS for name in SHOWN)
    assert own["verdict"] in said
    assert "rejected row 4" in said


def test_elements_are_drawn_where_it_is_said(world):
    result = isotrace.tracing_map(world, ["CCOCCN", "CCCCO"], within="N", least=1e-6, bootstrap=20)
    assert result.tables["pairs"]["target"].to_list() == ["mask:6"]
    assert [row["reason"] for row in result.summary["rejects"]] == ["it has no N atom of one token to draw"]


def test_a_second_sequence_is_the_corrupt_input(world):
    data = pl.DataFrame(
        {"smiles": ["CCOCCN", "CCOCCN", "CCOCCN", "CCOCCN"], "other": ["CNOCCN", "CNOC", "CCOCNN", "CCOCCN"]}
    )
    result = isotrace.tracing_map(world, data, target="mask:5", against="other", least=1e-6, bootstrap=20)
    assert result.summary["n"]["pairs"] == 1
    assert result.tables["pairs"]["positions"].to_list() == [[2]]
    reasons = " ".join(row["reason"] for row in result.summary["rejects"])
    assert "as many tokens" in reasons
    assert reasons.count("are the same") == 2  # one differs where the mask is


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"least": 0.99}, "moves no answer of"),
        ({"data": ["C"]}, "can be mapped; first reason: no run of 3"),
        ({"masks": 2, "target": "mask:2"}, "leave them out"),
        ({"against": "other", "corruption": "noise"}, "leave out --corruption"),
        ({"target": "mask:zz"}, "out of range"),
        ({"span": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_mapped_is_one_line(world, given, says):
    with pytest.raises(InputError, match=says) as error:
        isotrace.tracing_map(world, **{"data": ["CCOCCN"]} | given)
    assert "\n" not in str(error.value)
    assert MapRequest.verb() == "map"

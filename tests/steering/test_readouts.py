"""Edits of what the head reads, of what neurons push, and of what layers hand on."""

import planted
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.interventions import Attentions, HeadInputs, MLPs, Plan
from isotrace.steering import Edits, RemoveEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions import DIRECTIONS, Fitting
from isotrace.steering.directions.readouts.eigenshift import standardised_difference
from isotrace.steering.directions.readouts.injection import probability, recovered
from isotrace.steering.directions.readouts.sites import asked, sites_where
from isotrace.studies.worlds.planted_weights import Weights

FAMILIES = ("esm-rotary", "modernbert", "gpt2", "bart")


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_shrinking_the_input_of_the_head_is_shrinking_its_singular_values(family, tmp_path):
    subject = tiny.in_float64(tiny.load_tiny(tiny.save_subject(tiny.tiny_model(family), tmp_path)))
    batch, parts = subject.tokenize(["CCOCN"]), HeadInputs()
    weight = parts.weight(subject)
    u, sizes, vh = torch.linalg.svd(weight, full_matrices=False)
    edit = RemoveEdit(components=parts, layer=0, direction=vh[[0, 3]][:, None])
    edit.check(subject)
    assert not torch.equal(subject.run(batch, plan=edit.plan(0.4)).logits, subject.run(batch).logits)
    by_edit = subject.run(batch, plan=edit.plan(0.4)).logits[0, 1:-1]
    sizes[[0, 3]] *= 0.6
    # a parameter of its own, so that tied embeddings stay what they are
    subject.module(subject.family.head_decoder).weight = torch.nn.Parameter(u @ torch.diag(sizes) @ vh)
    torch.testing.assert_close(by_edit, subject.run(batch).logits[0, 1:-1], rtol=1e-6, atol=1e-6)


def assert_saved(edits, subject, folder):
    """And its twin is another edit of the same place."""
    again = Edits.load(edits.save(folder / "edit", subject), subject)
    assert again.plan(0.7).id == edits.plan(0.7).id != edits.twin(0).plan(0.7).id


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    subject, weights, (_, neuron) = planted.subject_of(tmp_path_factory.mktemp("planted"))
    return subject, weights, neuron, planted.contrast_of(subject)


def test_differences_are_in_pooled_deviations_whatever_the_sign():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, 6, generator=generator, dtype=torch.float64)
    a[:, 2] = 5 * a[:, 2] + 4  # large, and widely spread
    a[:, 4] = 0.2 * a[:, 4] - 0.8
    b[:, 4] *= 0.2
    found = standardised_difference(a, b)
    assert int(found.abs().argmax()) == 4
    torch.testing.assert_close(standardised_difference(-a, -b), -found)


@torch.no_grad()
def test_eigenshift_shrinks_the_planted_answer_alone(tmp_path):
    """N anywhere makes S likely at every place; O is predicted by nothing but stands in every sequence."""
    w = Weights([*(f"token {t}" for t in "CNOS"), "seen", "else", "answer S", "answer C"])
    w.head(0, [], [("token N", "seen", 8.0), ("token C", "else", 8.0)])
    w.neuron(1, {"seen": 10.0}, 0.0, "answer S")
    w.neuron(1, {"else": 10.0}, 0.0, "answer C", length=1.0)
    w.model.lm_head.decoder.weight.data[w.tokenizer.get_vocab()["C"]] *= 2  # so that the singular vectors are these two
    subject = w.load(tmp_path / "head")
    bad, fine = ["CNOC", "NOCC", "COCN", "NCCO"], ["CCOC", "COCC", "OCCC", "COCO"]
    contrast = Contrast.of(subject, bad + fine, ["bad"] * 4 + ["fine"] * 4, positive="fine")
    edits = DIRECTIONS["eigenshift"].fit(subject, contrast, tokens="O,N", share=0.5)
    assert abs(float(edits.edits[0].direction.flatten() @ w["answer S"])) > 0.99
    assert_saved(edits, subject, tmp_path)
    batch = subject.tokenize(["CNCC"])
    plain, shrunk = (subject.run(batch, plan=edits.plan(alpha)).logits[0, 3] for alpha in (0, 0.9))
    sulphur, carbon = map(subject.token_id, "SC")
    rest = [i for i in range(len(plain)) if i != sulphur]
    assert float(shrunk[sulphur]) == pytest.approx(0.1 * float(plain[sulphur]), abs=0.02 * float(plain[sulphur]))
    torch.testing.assert_close(shrunk[rest], plain[rest], rtol=1e-3, atol=1e-3)
    assert float(plain[carbon]) > 0.1
    for tokens, more, said in (("I", {}, "hold no token of I"), ("O", {"components": MLPs()}, "leave out the comp")):
        with pytest.raises(InputError, match=said):
            DIRECTIONS["eigenshift"].fit(subject, contrast, tokens=tokens, **more)


def test_sites_are_hidden_one_at_a_time(world):
    subject, *_, contrast = world
    carbon = subject.token_id("C")
    places = sites_where(subject, contrast.examples, lambda t: t == carbon, 2, 0)
    assert all(int(contrast.examples[s.row].ids[s.position]) == carbon for s in places)
    assert max(sum(s.row == row for s in places) for row in range(len(contrast))) == 2
    seen = 0
    for batch, where in asked(subject, contrast.examples, places):
        assert ((batch.ids == subject.mask_id).sum(1) == 1).all()
        assert (batch.ids[torch.arange(len(where)), where] == subject.mask_id).all()
        seen += len(where)
    assert seen == len(places)


@torch.no_grad()
def test_the_push_of_a_planted_neuron_is_taken_out_and_nothing_else_changes(tmp_path):
    """A neuron that fires for S, wherever it stands, writes the answer F; heads carry it to every place."""
    w = Weights([*(f"token {t}" for t in "CNOSF"), "push", "seen", "answer F", "answer O"])
    w.neuron(0, {"token S": 20.0}, -20, "push")
    w.head(1, [], [("push", "seen", 4.0)])
    w.neuron(1, {"seen": 60.0}, -8.0, "answer F")  # above what rounding of the weights leaves
    w.detectors(0, [("token N", "answer O")])
    subject = tiny.in_float64(w.load(tmp_path / "anchored"))
    texts = ["CCSN", "CSCO", "SCCN", "CNSC"]
    contrast = Contrast.of(subject, texts, ["a", "b"] * 2)
    edits = DIRECTIONS["anchored"].fit(subject, contrast, token="F", gap=0.01, k=1, layers=(1,))
    assert_saved(edits, subject, tmp_path)
    pushed, unbiased = subject.tokenize(["CCSC"]), subject.tokenize(["CCNC"])
    fluorine = subject.token_id("F")
    before, after = (subject.run(pushed, plan=edits.plan(alpha)).logits[0, 2] for alpha in (0, 1))
    assert float(after[fluorine]) < float(before[fluorine]) - 0.1
    assert abs(float(after[fluorine] - after[subject.token_id("I")])) < 0.05 * float(
        before[fluorine] - before[subject.token_id("I")]
    )
    kept, same = (subject.run(unbiased, plan=edits.plan(alpha)).logits for alpha in (0, 1))
    torch.testing.assert_close(kept, same, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="lower gap"):
        DIRECTIONS["anchored"].fit(subject, contrast, token="F", gap=1e4)


def evidence(folder, decoy):
    """N anywhere is carried to every place by a head of layer 0; a neuron of layer 0, the `decoy`, takes half of that
    off again; a neuron of layer 2 turns it into S. A head of layer 1 writes what nobody reads, and leaves room."""
    w = Weights([*(f"token {t}" for t in "CNOS"), "found", "junk", "answer S"])
    w.head(0, [], [("token N", "found", 8.0)])
    if decoy:
        w.neuron(0, {"found": 10.0}, 0.0, "found", length=-1.0)
    w.head(1, [], [("token C", "junk", 3.0)])
    w.neuron(2, {"found": 10.0}, 0.0, "answer S", length=8.0)
    return w.load(folder)


@torch.no_grad()
def test_an_injection_gives_back_what_a_decoy_took(tmp_path):
    subject, whole = (evidence(tmp_path / name, name == "decoy") for name in ("decoy", "whole"))
    clean, corrupt = ["CCNSCC", "NCCCSC", "CSCCCN"], ["CCCSCC", "CCCCSC", "CSCCCC"]
    contrast = Contrast.of(
        subject, clean + corrupt, ["clean"] * 3 + ["corrupt"] * 3, positive="clean", pairs=[1, 2, 3] * 2
    )
    fitting = Fitting(subject, contrast, Attentions(), (0, 1, 2))
    found = recovered(fitting, "S", 1, 0)
    assert found[0] > 0.9
    assert abs(found[1]) < 0.05
    edits = DIRECTIONS["injection"].fit(subject, contrast, tokens="S", sources=1, targets=1)
    assert edits.edits[0].sources == {0: pytest.approx(found[0])}
    places = sites_where(subject, contrast.examples[:3], lambda t: t == subject.token_id("S"), 1, 0)
    ((batch, where),) = asked(subject, contrast.examples[:3], places)
    answers = torch.full((3,), subject.token_id("S"))
    plans = Plan(), edits.plan(0.5), edits.plan(1.0)
    taken, half, more = (probability(subject, batch, where, answers, plan) for plan in plans)
    wanted = probability(whole, batch, where, answers)
    assert (taken < 0.3 * wanted).all()
    torch.testing.assert_close(half, wanted, rtol=0, atol=0.03)  # the half that was taken
    assert (more > wanted).all()
    without = [subject.tokenize([text]) for text in corrupt]  # nothing is there to be given
    for one in without:
        plain, steered = (subject.run(one, plan=plan).logits.softmax(-1) for plan in plans[:2])
        torch.testing.assert_close(plain, steered, rtol=0, atol=0.002)
    twins = [probability(subject, batch, where, answers, edits.twin(seed).plan(1.0)) for seed in range(5)]
    assert all(float(more.mean()) > float(twin.mean()) for twin in twins)
    uneven = Contrast.of(subject, ["CNS", "CS"], ["b", "a"], pairs=[1, 1])
    with pytest.raises(InputError, match="differs in length"):
        DIRECTIONS["injection"].fit(subject, uneven, tokens="S")

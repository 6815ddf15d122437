"""Every verb and method runs where its subject is, with the numbers of the CPU: on a pretended device, and on a GPU."""

from contextlib import nullcontext
from math import isfinite

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from safetensors.torch import load_file

import isotrace
import tiny
import tiny_tasks
from isotrace.activations.harvest import mask_some
from isotrace.base.errors import InputError, SubjectError
from isotrace.base.identity import identity
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.discovery.methods import METHODS, Problem
from isotrace.discovery.tasks import mask
from isotrace.interventions import Add, Edges, Heads, Intervention, Neurons, Plan, Scale, Select, Set, To
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.subject import load_subject

ROWS = [text for text, _ in tiny_tasks.molecules()[:10]]


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    """(folder of a subject, folder of its dictionary)."""
    root = tmp_path_factory.mktemp(request.param)
    made = tiny.tiny_model(request.param)
    made = made if request.param.startswith("t5") else tiny.fit(made, ROWS, 30)  # which has no inputs for its decoder
    subject = tiny.load_tiny(tiny.save_subject(made, root / "subject"))
    save_dictionary(tiny.random_dictionary(subject), root / "clt", reference(subject), dtype=torch.float32, training={})
    return root


def features(subject, dictionary, place):
    return isotrace.features(subject, dictionary, ROWS).to_frame().to_dicts()


def connections(subject, dictionary, place):
    layer = isotrace.features(subject, dictionary, ROWS).to_frame().filter(layer=1)
    feature = f"1.{layer['feature'].mode().min()}"
    found = isotrace.features(subject, dictionary, ROWS, feature=feature, permutations=2, shown=4)
    return found.summary | {"dictionary": None}


def featuriser(subject, dictionary, place):
    return isotrace.Featuriser(subject, dictionary, pool="mean", sparse_output=False).fit_transform(ROWS)


def evaluate(subject, dictionary, place):
    found = isotrace.evaluate(subject, dictionary, ROWS, bootstrap=20).to_dict()
    return found["dictionaries"], [control | {"dictionary_id": None} for control in found["controls"]]


def intervene(subject, dictionary, place):
    batch = subject.tokenize(ROWS[:2])
    plan = Plan.of(
        Intervention(Features(dictionary), Set(0.5), Select(layers=(1,), index=(2,))),
        Intervention(Heads(), To.mean(subject, Heads(), [batch]), Select(layers=(0,), index=(1,))),
        Intervention(Neurons(), Scale(2.0)),
        Intervention(Features(dictionary, errors="drop"), Add(0.1), Select(layers=(2,))),
    )
    return isotrace.intervene(subject, ROWS[:4], plan).to_frame()["change"].to_list()


def generate(subject, dictionary, place):
    batch, chosen = mask_some(subject, subject.tokenize(ROWS[:3]), 0.4, torch.Generator().manual_seed(0))
    assert bool(chosen.any())
    return subject.generate(batch, max_new=4, seed=1).sequences


def harvest(subject, dictionary, place):
    isotrace.harvest(subject, ROWS, tokens=60, out=place)
    return [tensor.tolist() for file in sorted(place.glob("shard-*")) for _, tensor in sorted(load_file(file).items())]


def train(subject, dictionary, place):
    # float32 on every processor: PyTorch has no autocast for a device that is not there
    settings = '[training]\nbatch_tokens = 32\nfinetune_tokens = 64\ndtype = "float32"\n'
    (place.with_suffix(".toml")).write_text(settings)
    own = {"architecture": "crosslayer", "features": 12, "k": 3, "tokens": 128, "config": place.with_suffix(".toml")}
    isotrace.train(subject, ROWS, out=place, **own)
    return [w.tolist() for w in load_dictionary(place).W_enc]


def train_groups(subject, dictionary, place):
    (place.with_suffix(".toml")).write_text('[training]\nbatch_tokens = 32\ndtype = "float32"\n')
    own = {"architecture": "snmf", "features": 6, "tokens": 128, "config": place.with_suffix(".toml")}
    isotrace.train(subject, ROWS, out=place, **own)
    return [w.tolist() for w in load_dictionary(place, subject).W_dec]


def trace(subject, dictionary, place):
    own = {"max_features": 20, "nodes": 4, "controls": 2}
    own |= {} if len(subject.stack_sizes) == 1 else {"circuit": "effects"}  # a mask is learned in one of them
    probe = place.parent / "probe"
    tiny.random_probe(subject, layers=(0, subject.n_layers)).save(probe)
    targets = {"mask:3": 2, f"probe:{probe}": 0}  # spellings of each
    return [isotrace.trace(subject, dictionary, "CC(O)N", t, spellings=n, **own).to_dict() for t, n in targets.items()]


def annotate(subject, dictionary, place):
    own = {"permutations": 20, "bootstrap": 20, "min_positive": 3, "spellings": 1, "untrained_tokens": 64}
    return isotrace.annotate(subject, dictionary, ROWS, **own).to_dict() | {"seconds": None}


def circuit(subject, dictionary, place, **given):
    table = tiny_tasks.rows().rename({"label": "bromine"}).drop("index", "name")
    own = {"label": "bromine", "sizes": (2, 20), "controls": 2, "bootstrap": 20, "drawn": 1, "limit": 12}
    return isotrace.circuit(subject, dictionary, table, **own | given).to_dict()


def circuit_of_heads(subject, dictionary, place):
    return circuit(subject, dictionary, place, mediator="head", ranking="attribution_patching", sizes=(2, 4))


def circuit_by_mask(subject, dictionary, place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask, "STEPS", 2)
        return circuit(subject, dictionary, place, ranking="learned_mask", sizes=(2, 4))


def methods(subject, dictionary, place):
    """Every method that ranks nodes or edges, and that takes this subject."""
    batch, corrupt = subject.tokenize(["CCO"]), subject.tokenize(["OCN"])
    at = subject.reading_position(2)
    metric = lambda _, final: subject.head(final[:, at])[:, 5] - subject.head(final[:, at]).mean(-1)  # noqa: E731
    found = {}
    for name, method in METHODS.items():
        problem = Problem.interchange(subject, Edges() if method.ranks == "edge" else Heads(), batch, corrupt, metric)
        if method.refuse(problem) is None:
            scores = method(problem)
            found[name] = [v.tolist() for v in scores.values] if method.ranks == "node" else scores.values.tolist()
    assert found
    return found


VERBS = (features, connections, featuriser, evaluate, intervene, generate, harvest, train, train_groups, trace,
         annotate, circuit, circuit_of_heads, circuit_by_mask, methods)  # fmt: skip


def found_on(world, verb, place, device="cpu"):
    subject = load_subject(world / "subject", domain="molecule", device=device)
    found = verb(subject, load_dictionary(world / "clt", subject), place)
    assert subject.device.type == torch.device(device).type
    return found


def alike(found, expected, where="found"):
    """Text and counts are the same, numbers but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            alike(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            alike(one, other, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, **NEAR, nan_ok=True), where
    elif hasattr(expected, "shape"):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), where
    else:
        assert found == expected, where


if torch.cuda.is_available():  # a second device in one process is what PyTorch's autograd cannot have
    NAME, pretending = "cuda", nullcontext
else:
    from pretended import NAME, pretending

# A GPU adds up in another order: what divides by nearly nothing, or is the spread of two controls, shows it.
NEAR = {"rel": 5e-3, "abs": 1e-3} if NAME == "cuda" else {"rel": 1e-3, "abs": 1e-4}
on_gpu = pytest.mark.gpu if NAME == "cuda" else lambda test: test
CASES = [("bert", verb) for verb in VERBS] + [
    ("bart", verb) for verb in (features, evaluate, intervene, generate, trace)
]
SLOW = (methods, circuit_of_heads)  # what they run on, circuit and trace do too
ASIDE = [pytest.param(*case, marks=pytest.mark.nightly) if case[1] in SLOW else case for case in CASES]


@on_gpu
@pytest.mark.parametrize(("world", "verb"), ASIDE, ids=[f"{a}-{b.__name__}" for a, b in CASES], indirect=["world"])
def test_a_verb_runs_where_the_subject_is(world, verb, tmp_path):
    expected = found_on(world, verb, tmp_path / "cpu")
    with pretending():
        found = found_on(world, verb, tmp_path / "there", NAME)
    alike(found, expected)


INDEX, TABLE, DRAW = torch.tensor([0, 2]), torch.ones(3, 4), torch.Generator().manual_seed(0)
REFUSED = {
    "two devices": lambda x: x + TABLE,
    "one number of the device into a vector of the CPU": lambda x: TABLE.add_(x[0, 0]),
    "indices of the device": lambda x: TABLE[INDEX.to(x.device)],
    "selection by indices of the CPU": lambda x: x.index_select(0, INDEX),
    "values of the CPU written by index": lambda x: x.index_put_((INDEX,), TABLE[:2]),
    "one number of the CPU beside one of the device": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "a generator of the CPU, where told": lambda x: torch.rand(3, generator=DRAW, device=x.device),
    "a generator of the CPU, in place": lambda x: x.uniform_(generator=DRAW),
    "NumPy": lambda x: x.numpy(),
}
TAKEN = {
    "one number of the CPU": lambda x: x + torch.tensor(2.0),
    "indices of the CPU": lambda x: x[INDEX],
    "a copy": lambda x: x[:2].copy_(TABLE[:2]),
}


@on_gpu
@pytest.mark.parametrize("name", [*REFUSED, *TAKEN])
def test_the_pretended_device_takes_what_a_gpu_takes(name):
    with pretending():
        there = TABLE.to(NAME)
        if name in REFUSED:
            with pytest.raises((RuntimeError, TypeError)):
                REFUSED[name](there)
        else:
            assert TAKEN[name](there).device.type == NAME


def numbers(found):
    """Every finite float of a result, in its order."""
    if isinstance(found, dict):
        return [x for value in found.values() for x in numbers(value)]
    if isinstance(found, list | tuple):
        return [x for value in found for x in numbers(value)]
    if hasattr(found, "ravel"):
        return numbers(found.ravel().tolist())
    return [found] if isinstance(found, float) and isfinite(found) else []


def in_digits(world, verb, place, dtype):
    subject = load_subject(world / "subject", domain="molecule", dtype=dtype)
    return verb(subject, load_dictionary(world / "clt", subject), place)


@pytest.mark.parametrize("world", tiny.VARIANTS, indirect=True)
def test_a_subject_of_fewer_digits_is_near_that_of_float32(world, tmp_path):
    """What is read, and what an edit leaves: both float32 to the reader, rounded where they flow on."""
    found, expected = (isolated(world, dtype) for dtype in ("bfloat16", "float32"))
    for name in expected:
        assert found[name].dtype == torch.float32
        assert 0 < (found[name] - expected[name]).norm() < 0.1 * expected[name].norm()


def isolated(world, dtype):
    subject = load_subject(world / "subject", domain="molecule", dtype=dtype)
    assert {p.dtype for p in subject.model.parameters()} == {getattr(torch, dtype)}
    dictionary, batch = load_dictionary(world / "clt", subject), subject.tokenize(ROWS[:3])
    plain = subject.run(batch, capture=["layers.1.mlp_in", "layers.1.resid_post"])
    plan = Plan.of(Intervention(Features(dictionary), Set(2.0), Select(layers=(1,), index=(2,))))
    twice = Plan.of(plan, Intervention(Features(dictionary), Scale(2.0), Select(layers=(1,), index=(2,))))
    found = {"final": plain.final, "logits": plain.logits, **plain.captured}
    for name, one in (("set", plan), ("set, then doubled", twice)):
        found[name] = subject.run(batch, plan=one).final
    with subject.edited(plan):  # the inner of two contexts finds the features as the outer has left them
        found["nested"] = subject.run(batch, plan=Plan.of(twice.interventions[1])).final
    assert torch.equal(found["nested"], found["set, then doubled"])
    return found


def losses(subject, dictionary, place):
    """The shares of what ablation costs say nothing here: it costs these subjects next to nothing."""
    found = isotrace.evaluate(subject, dictionary, ROWS, bootstrap=20)
    return [
        one["free_running"]["cross_entropy"] for one in (*found.to_dict()["dictionaries"], *found.to_dict()["controls"])
    ]


@pytest.mark.parametrize("world", ["bert"], indirect=True)
@pytest.mark.parametrize("verb", [features, featuriser, losses, intervene, harvest, train])
def test_a_verb_runs_in_fewer_digits(world, verb, tmp_path):
    found, expected = (numbers(in_digits(world, verb, tmp_path / dtype, dtype)) for dtype in ("bfloat16", "float32"))
    assert found != expected
    if verb not in (features, train):  # a rounded subject may choose other features, and what is learnt from it differs
        assert norm(np.subtract(found, expected)) < 0.1 * norm(expected)


@pytest.mark.parametrize("world", ["bert", "bart"], indirect=True)
def test_what_is_written_in_fewer_digits_has_as_many_tokens(world, tmp_path):
    found, expected = (in_digits(world, generate, tmp_path, dtype) for dtype in ("bfloat16", "float32"))
    assert len(found) == len(expected)


@pytest.mark.parametrize("world", ["bert"], indirect=True)
@pytest.mark.parametrize("verb", [trace, annotate, circuit, methods])
def test_what_must_add_up_refuses_fewer_digits(world, verb, tmp_path):
    with pytest.raises(SubjectError, match=r"needs a subject in float32, .* is loaded in torch\.bfloat16"):
        in_digits(world, verb, tmp_path, "bfloat16")


@pytest.mark.parametrize("world", ["bert"], indirect=True)
def test_digits_are_asked_for_by_name_and_told_apart(world):
    rounded = load_subject(world / "subject", domain="molecule", dtype="bfloat16")
    names = {"domain": "molecule", "device": "cpu", "subject_dtype": "bfloat16"}
    asked = isotrace.features(world / "subject", world / "clt", ROWS, **names)
    assert asked.to_frame().equals(isotrace.features(rounded, world / "clt", ROWS).to_frame())
    assert identity(rounded) != identity(load_subject(world / "subject", domain="molecule"))
    with pytest.raises(InputError, match="--subject-dtype is for a subject that is loaded here"):
        isotrace.features(rounded, world / "clt", ROWS, subject_dtype="bfloat16")


@pytest.mark.parametrize("world", ["bert"], indirect=True)
@pytest.mark.parametrize("site", ["layers.1.mlp_in", "layers.1.resid_post"])
def test_an_edit_reads_what_the_one_before_it_left_before_it_is_rounded(world, site):
    subject, left, seen = load_subject(world / "subject", domain="molecule", dtype="bfloat16"), [], []
    before, after = (lambda x: left.append(x * 1.001) or left[0]), (lambda x: seen.append(x) or x)
    with hookpoints_edited(subject, {site: before}), hookpoints_edited(subject, {site: after}):
        subject.run(subject.tokenize(ROWS[:2]))
    assert torch.equal(seen[0], left[0])
    assert not torch.equal(left[0], left[0].bfloat16().float())

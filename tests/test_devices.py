"""Every verb runs where its subject is: on a device that is pretended, with the numbers of the CPU; on a GPU where one is."""

import pytest
import torch
from safetensors.torch import load_file

import isotrace
import pretended
import tiny
import tiny_tasks
from isotrace.activations.harvest import mask_some
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.interventions import Add, Heads, Intervention, Neurons, Plan, Scale, Select, Set, To
from isotrace.subjects.subject import load_subject

ROWS = [text for text, _ in tiny_tasks.molecules()[:24]]


@pytest.fixture(scope="module", params=["bert", "esm-token-dropout", "bart"])
def world(request, tmp_path_factory):
    """(folder of a subject, folder of its dictionary)."""
    root = tmp_path_factory.mktemp(request.param)
    made = tiny.fit(tiny.tiny_model(request.param), ROWS, 30)
    subject = tiny.load_tiny(tiny.save_subject(made, root / "subject"))
    save_dictionary(tiny.random_dictionary(subject), root / "clt", reference(subject), dtype=torch.float32, training={})
    return root


def features(subject, dictionary, place):
    return isotrace.features(subject, dictionary, ROWS).to_frame().drop("activation").to_dicts()


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
    (place.with_suffix(".toml")).write_text("[training]\nbatch_tokens = 32\nfinetune_tokens = 64\n")
    own = {"architecture": "crosslayer", "features": 12, "k": 3, "tokens": 128, "config": place.with_suffix(".toml")}
    isotrace.train(subject, ROWS, out=place, **own)
    return [w.tolist() for w in load_dictionary(place).W_enc]


def trace(subject, dictionary, place):
    found = isotrace.trace(subject, dictionary, ROWS[0], "mask:3", max_features=30, nodes=6, controls=2, spellings=2)
    return found.to_dict()


def annotate(subject, dictionary, place):
    own = {"permutations": 20, "bootstrap": 20, "min_positive": 5, "spellings": 1, "untrained_tokens": 64}
    return isotrace.annotate(subject, dictionary, ROWS, **own).to_dict() | {"seconds": None}


def circuit(subject, dictionary, place):
    table = tiny_tasks.rows().rename({"label": "bromine"}).drop("index", "name")
    own = {"sizes": (2, 20), "controls": 2, "bootstrap": 20, "drawn": 1, "limit": 20}
    return isotrace.circuit(subject, dictionary, table, label="bromine", **own).to_dict()


VERBS = (features, featuriser, evaluate, intervene, generate, harvest, train, trace, annotate, circuit)


def found_on(world, verb, place, device="cpu"):
    subject = load_subject(world / "subject", domain="molecule", device=device)
    found = verb(subject, load_dictionary(world / "clt", subject), place)
    assert subject.device.type == torch.device(device).type
    return found


def alike(found, expected):
    """Text and counts are the same, numbers but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            alike(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4, nan_ok=True)
    elif hasattr(expected, "shape"):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert found == expected


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_verb_runs_where_the_subject_is(world, verb, tmp_path):
    expected = found_on(world, verb, tmp_path / "cpu")
    with pretended.pretending() as device:
        found = found_on(world, verb, tmp_path / "there", str(device))
    alike(found, expected)

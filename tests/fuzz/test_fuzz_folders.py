"""Damaged folders, mistyped targets, seeds and names: a right result, or one line that says why."""

import json
from functools import partial

import odd_folders
import pytest
import torch
from test_fuzz import each, refusal, seeds

import tiny
from isotrace.attribution.trace import TraceConfig
from isotrace.base.errors import IsotraceError
from isotrace.base.progress import slug
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.subjects.subject import load_subject
from isotrace.subjects.targets import check_target, parse_target
from isotrace.verbs.evaluate import EvaluateRequest


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(subject, its folder, that of its dictionary)."""
    root = tmp_path_factory.mktemp("world")
    folder = tiny.save_subject(tiny.tiny_model("bert"), root / "subject")
    subject = tiny.load_tiny(folder)
    dictionary = tiny.random_dictionary(subject)
    save_dictionary(dictionary, root / "clt", reference(subject), dtype=torch.float32, training={})
    return subject, folder, root / "clt"


@seeds
def test_folders_of_dictionaries(world, seeds, tmp_path):
    subject, _, source = world
    whole = load_dictionary(source, subject).state_dict()

    def one(rng):
        try:
            found = load_dictionary(odd_folders.folder(source, tmp_path / "d", rng), subject).state_dict()
        except IsotraceError as error:
            refusal(error)
            return
        assert all(torch.equal(found[name], value) for name, value in whole.items())

    each(seeds, one)


@seeds
@pytest.mark.filterwarnings("ignore")  # transformers has opinions on odd configs
def test_folders_of_subjects(world, seeds, tmp_path):
    _, source, _ = world

    def one(rng):
        try:
            subject = load_subject(odd_folders.folder(source, tmp_path / "s", rng), domain="molecule")
            output = subject.run(subject.tokenize(["CCO"]))
        except IsotraceError as error:
            refusal(error)
            return
        assert output.final.shape[-1] == subject.d_model

    each(seeds, one)


@seeds
def test_targets(world, seeds):
    subject = world[0]
    batch = subject.tokenize(["CCO"])

    def one(rng):
        text = odd_folders.target(rng)
        refused = None
        try:
            check_target(text, subject)
        except IsotraceError as error:
            refused = error
            refusal(error)
        try:
            target = parse_target(text, subject, batch)
        except IsotraceError as error:
            refusal(error)
            return
        assert refused is None  # what fits one sequence is not refused before the first
        assert torch.isfinite(target.value(subject, batch, subject.run(batch).final)).all()

    each(seeds, one)


def taken(make, seed) -> bool:
    try:
        make(seed=seed)
    except IsotraceError as error:
        refusal(error)
        return False
    except ValueError:  # of pydantic, where a class is made in code
        return False
    return True


@seeds
@pytest.mark.parametrize("make", [TraceConfig, partial(EvaluateRequest, dictionary="x", subject="y", data="z")])
def test_seeds(make, seeds):
    def one(rng):
        seed = odd_folders.seed(rng)
        if type(seed) is int:
            assert taken(make, seed) == (0 <= seed < 2**63)
        else:
            assert not taken(make, seed) or seed in (True, 1.0, "7")  # what stands for a whole number

    each(seeds, one)


@seeds
def test_names_become_folders(seeds, tmp_path):
    def one(rng):
        name = odd_folders.name(rng)
        made = tmp_path / slug(f"00001 {name}")
        made.mkdir(exist_ok=True)
        assert made.resolve().parent == tmp_path.resolve()
        (made / "file").write_text(json.dumps(name))

    each(seeds, one)

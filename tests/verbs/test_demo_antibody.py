"""The antibody demo's steps: kept where they are done, made again for another seed."""

from importlib import import_module

import pytest
import torch

import tiny
from isotrace.base.progress import silent
from isotrace.base.runs import open_run
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.studies.study import bundled_table
from isotrace.verbs.demo import DemoRequest
from isotrace.verbs.demo_antibody import dictionary
from isotrace.verbs.loading import dictionary_of, opened
from isotrace.verbs.training import run_of


def test_another_seed_keeps_no_old_dictionary(rotary, tmp_path, monkeypatch):
    pytest.importorskip("immunum", reason="antibodies are numbered by immunum")
    made, few = [], bundled_table("antibodies")[::30]
    monkeypatch.setattr(import_module("isotrace.studies.study"), "bundled_table", lambda _: few)

    def trained(request, progress):
        made.append(("train", request.seed, len(request.data)))
        with open_run(request.out, **run_of(request, rotary, request.seed), overwrite=request.overwrite) as run:
            save_dictionary(
                tiny.random_dictionary(rotary, seed=request.seed),
                run.path,
                reference(rotary),
                dtype=torch.float32,
                training={},
            )
            run.adopt("dictionary.json", "weights.safetensors")

    def judged(request, progress):
        made.append((request.verb(), request.seed, len(request.data)))
        given = request.dictionary[0] if isinstance(request.dictionary, tuple) else request.dictionary
        with opened(request, request.out, rotary, dictionary_of(given, rotary)) as run:
            assert run is not None
            run.text("found.txt", "all of it")

    for verb, does in (("train", trained), ("evaluate", judged), ("annotate", judged)):
        monkeypatch.setattr(f"isotrace.verbs.{verb}.{verb}", does)
    for seed in (0, 0, 1, 1):
        dictionary(DemoRequest(out=tmp_path, seed=seed), rotary, silent)
    steps = ("train", "evaluate", "annotate")
    assert [step[:2] for step in made] == [(name, seed) for seed in (0, 1) for name in steps]
    learned, held, named = (n for *_, n in made[:3])
    assert learned + held == named > learned > held
    (tmp_path / "names" / "found.txt").write_text("changed")
    dictionary(DemoRequest(out=tmp_path, seed=1), rotary, silent)
    assert made[6:] == [("annotate", 1, named)]

"""A task read from a target that stands already: the same as the readout it was made from."""

from dataclasses import replace

import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.discovery.tasks.readout import target_readout
from isotrace.discovery.tasks.task_circuit import TaskConfig, find_circuit
from isotrace.subjects.probe import Probe, ProbeConfig
from tiny_tasks import fitted_folder, task

QUICK = {"sizes": (2, 20, 72), "n_controls": 2, "n_bootstrap": 40}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return tiny.load_tiny(fitted_folder(tmp_path_factory.mktemp("tasks")))


@pytest.fixture(scope="module")
def data(fitted):
    return task(fitted)


@pytest.fixture(scope="module")
def found(fitted, data):
    return find_circuit(fitted, tiny.exact_dictionary(fitted), data, TaskConfig(**QUICK))


def saved(subject, folder, weight, bias, *, about, layers, pool="mean"):
    config = ProbeConfig(
        "isotrace-probe", 2, "own", "own", "classification", (about,), "log-odds", layers, pool,
        subject.files.weights_sha256,
    )  # fmt: skip
    Probe(config, weight, bias).save(folder)
    return f"probe:{folder}"


def numbers(found):
    kept = {name: found.summary[name] for name in ("task_metric", "sweep", "choice", "necessity")}
    return kept, found.features.scores.tolist()


@pytest.mark.parametrize("way", ["final", "several", "other class"])
def test_a_saved_probe_gives_the_circuit_of_the_readout_it_is(fitted, data, found, tmp_path, way):
    """`several`: read from the embeddings too, at weight zero. `other class`: the same boundary seen from the first."""
    weight, bias = found.readout.weight, found.readout.bias
    last, about = fitted.n_layers, data.classes[1]
    if way == "other class":
        weight, bias, about = -weight, -bias, data.classes[0]
    if way == "several":
        weight = torch.cat([torch.zeros_like(weight), weight])
    layers = (0, last) if way == "several" else (last,)
    text = saved(fitted, tmp_path / "own", weight, bias, about=about, layers=layers)
    again = find_circuit(fitted, tiny.exact_dictionary(fitted), data, TaskConfig(**QUICK, target=text))
    assert numbers(again) == numbers(found)
    assert any("was fitted before" in said for said in again.summary["warnings"])


def test_what_reads_the_embeddings_too_ranks_by_what_it_reads(fitted, data, found, tmp_path):
    """No part writes into the embeddings: their share of the readout moves outputs, not scores."""
    weight, bias = found.readout.weight, found.readout.bias
    rest = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    text = saved(
        fitted, tmp_path / "own", torch.cat([rest, weight]), bias, about=data.classes[1], layers=(0, fitted.n_layers)
    )
    readout = target_readout(fitted, data, None, text)
    examples = data.parts["report"][:4]
    for example in examples:
        ids = torch.from_numpy(example.ids)[None]
        batch = fitted.tokenize([example.text])
        hidden = fitted.hidden(ids, torch.ones_like(ids, dtype=torch.bool), (0,))[0, 1:-1].mean(0)
        own = found.readout.outputs([example], batch, fitted.hidden(batch.ids, batch.mask))
        both = readout.outputs([example], batch, readout.subject.hidden(batch.ids, batch.mask))
        torch.testing.assert_close(both, own + hidden @ rest, rtol=1e-4, atol=1e-4)


def test_targets_that_are_no_readout_of_the_task(fitted, data, found, tmp_path):
    weight, bias = found.readout.weight, found.readout.bias
    other = saved(fitted, tmp_path / "other", weight, bias, about="something else", layers=(fitted.n_layers,))
    with pytest.raises(InputError, match="none of the classes"):
        target_readout(fitted, data, None, other)
    with pytest.raises(InputError, match="whole sequences"):
        target_readout(fitted, data, None, "mask:1")
    three = replace(data, classes=("a", "b", "c"))
    with pytest.raises(InputError, match="two classes or numbers"):
        target_readout(fitted, three, None, other)
    single = saved(fitted, tmp_path / "single", weight, bias, about=data.classes[1], layers=(0,), pool="token")
    with pytest.raises(InputError, match="single token"):
        target_readout(fitted, data, None, f"{single}:1")
    config = TaskConfig(
        **QUICK, target=saved(fitted, tmp_path / "early", weight, bias, about=data.classes[1], layers=(0,)),
        mediator="head", ranking="direct_logit_attribution",
    )  # fmt: skip
    with pytest.raises(InputError, match="final hidden state alone"):
        find_circuit(fitted, tiny.exact_dictionary(fitted), data, config)

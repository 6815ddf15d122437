import os
import stat

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from isotrace.annotation.annotate import AnnotationConfig
from isotrace.attribution.supernodes import SupernodeConfig
from isotrace.attribution.trace import TraceConfig
from isotrace.base.errors import InputError
from isotrace.base.files import write_whole
from isotrace.base.settings import LARGEST_SEED, checked_seed, child_seed, whole_number
from isotrace.discovery.tasks.task_circuit import TaskConfig
from isotrace.subjects.generation import Sampling
from isotrace.training.config import StreamConfig, TrainingConfig
from isotrace.verbs.circuit import CircuitRequest
from isotrace.verbs.harvest import HarvestRequest
from isotrace.verbs.trace import TraceRequest

CONFIGS = (TraceConfig, TaskConfig, AnnotationConfig, Sampling, SupernodeConfig, StreamConfig, TrainingConfig)


@pytest.mark.parametrize("seed", [0, 1, 20240101123456, LARGEST_SEED])
def test_every_seed_seeds_every_generator(seed):
    children = [child_seed(seed, number) for number in (0, 1, 10**12)]
    for one in (seed, *children):
        assert checked_seed(one) == one
        torch.Generator().manual_seed(one)
        np.random.default_rng((one, 3))
    assert len(set(children)) == 3
    assert child_seed(3, 5) == 3_000_014


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1])
def test_settings_refuse_other_seeds(config, seed):
    assert config(seed=LARGEST_SEED).seed == LARGEST_SEED
    with pytest.raises((InputError, ValidationError)):
        config(seed=seed)


def test_a_request_refuses_other_seeds_in_one_line():
    for seed in (-1, LARGEST_SEED + 1, "x"):
        with pytest.raises(InputError, match="--seed") as caught:
            TraceRequest(subject="s", dictionary="d", data="CCO", target="probe:bbb", seed=seed)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["²", "①", "--1", "1_0", "٣", " 1", "1.0", "", "-", "+1", "1" * 5_000])
def test_whole_numbers_are_ascii_digits(text):
    assert whole_number(text) is None
    with pytest.raises(InputError, match="give whole numbers"):
        HarvestRequest(subject="s", data="d", tokens=1, out="o", layers=(text,))
    with pytest.raises(InputError, match="give whole numbers"):
        CircuitRequest(subject="s", dictionary="d", data="d", label="y", sizes=f"10,{text}x")


def test_whole_numbers_are_read():
    assert [whole_number(text) for text in ("0", "-12", "007")] == [0, -12, 7]
    assert HarvestRequest(subject="s", data="d", tokens=1, out="o", layers="0, 2").layers == (0, 2)


def test_a_tilde_is_a_home_folder_in_every_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    request = CircuitRequest(
        subject="~/s", dictionary="~/d", data="~/x.csv", label="~y", out="~/o", against=("~/a", "b"), column="~c"
    )
    assert (request.subject, request.dictionary, request.data) == tuple(f"{tmp_path}/{n}" for n in ("s", "d", "x.csv"))
    assert [str(path) for path in (request.out, *request.against)] == [f"{tmp_path}/o", f"{tmp_path}/a", "b"]
    assert (request.label, request.column) == ("~y", "~c")
    rows = ["~/no", "CCO"]
    assert TraceRequest(subject="s", dictionary="d", data=rows, target="probe:bbb").data is rows


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_rights_that_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / ".isotrace-shard.tmp").touch(0o600)  # left by a killed one
        write_whole(tmp_path / "shard", lambda file: save_file({"x": torch.ones(2)}, file.name))
        write_whole(tmp_path / "bytes", b"x")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("shard", "bytes")} == {0o666 & ~umask}

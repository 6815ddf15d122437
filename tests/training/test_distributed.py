"""Two processes give what one gives, whether they share tokens or features; what fails on one stops both.

`torchrun` starts this file itself: each process trains every case of CASES and writes what it got.
"""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from torch import Tensor

from isotrace.activations.stream import Block
from isotrace.base.errors import RunError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.kernels import backend
from isotrace.training import loop
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train
from isotrace.training.parallel import shares_of
from isotrace.training.trainer import Job
from isotrace.training.world import World

torch.set_num_threads(1)

D, LAYERS, BATCH, BATCHES, STEPS, PROCESSES = 8, 3, 24, 4, 32, 2
DEATH = 9  # exit code of the process that dies
REST = (2, 15)  # tokens of each process's block beyond its batches: 15 is a batch more that the other does not have
TOLERANCE = 1e-12  # float64, of the largest weight of a tensor: sums in another order, over STEPS steps
CONFIG = DictionaryConfig(
    "crosslayer", "topk", tuple(range(LAYERS)), D, D, 24, "layers.{}.mlp_in", "layers.{}.mlp_out", k=4, window=LAYERS
)
TRAINING = TrainingConfig(
    tokens=STEPS * BATCH, batch_tokens=BATCH, learning_rate=0.02, clip=0.8, auxiliary=0.25, auxiliary_k=5,
    dead_after=BATCH, penalty=0.2, dtype="float64",
)  # fmt: skip
NESTED = {"window": 2, "prefixes": (5, 14, 24)}
SKIP = {"architecture": "skip_transcoder", "window": 1, "skip": True}
PLAIN = {"architecture": "transcoder", "window": 1}
SAE = {"architecture": "sae", "window": 1, "hookpoint_in": "layers.{}.mlp_out", "token_normalization": "standardize"}
CASES: dict[str, tuple[str, dict]] = {
    "data topk": ("data", NESTED),
    "data relu": ("data", PLAIN | {"activation": "relu", "k": None}),
    "data gated": ("data", PLAIN | {"activation": "gated", "k": None}),
    "data jumprelu": ("data", PLAIN | {"activation": "jumprelu", "k": None}),
    "data batchtopk": ("data", {"activation": "batchtopk", "n_features": 32, "k": 3}),
    "features topk": ("features", NESTED),
    "features few, skip": ("features", SKIP | {"n_features": 6, "k": 5}),  # k is more than a process holds
    "features sae": ("features", SAE),
}


class Slices:
    """Blocks of BATCHES batches and a rest. Process r of two has half of every batch and a rest of REST[r] tokens;
    one process has the whole batches, then both rests."""

    hookpoints = tuple(f"layers.{i}.{site}" for site in ("mlp_in", "mlp_out") for i in range(LAYERS))
    d = D

    def __init__(self, world: World, bad: float | None = None) -> None:
        self.world, self.bad = world, bad

    def describe(self) -> dict:
        return {"kind": "slices", "bad": self.bad, "rank": self.world.rank, "world_size": self.world.size}

    def blocks(self, start: int = 0) -> Iterator[Block]:
        mixing = torch.randn(LAYERS, D, D, generator=torch.Generator().manual_seed(7))
        position = start
        while True:
            generator = torch.Generator().manual_seed(position)
            x = 2 + 3 * torch.randn(LAYERS, BATCH * BATCHES + sum(REST), D, generator=generator)
            both = torch.cat([x, (x @ mixing).tanh() + 0.3 * x.roll(1, 0)])
            position += 1
            block = self.own(both) if self.world.size == PROCESSES else both
            if self.bad is not None and position == 5 and self.world.rank == self.world.size - 1:
                block[0, 0, 0] = self.bad
            yield Block(position, block)

    def own(self, both: Tensor) -> Tensor:
        whole, *rests = both.split([BATCH * BATCHES, *REST], 1)
        batches = whole.unflatten(1, (BATCHES, PROCESSES, -1))
        return torch.cat([batches[:, :, self.world.rank].flatten(1, 2), rests[self.world.rank]], 1)


def job(changes: dict, **training) -> Job:
    return Job("tiny", replace(CONFIG, **changes), replace(TRAINING, **training))


class Stop(Exception):  # noqa: N818
    pass


def stop_at(step: int):
    def on_step(record: dict) -> None:
        if record["step"] == step:
            raise Stop

    return on_step


def trained(world: World, name: str, checkpoint: Path, **options):
    """(state of the dictionary or None, the records of all steps)."""
    parallel, changes = CASES[name]
    records: list[dict] = []
    options = {"world": world, "parallel": parallel, "on_step": records.append} | options
    found = train(Slices(world), [job(changes)], checkpoint, **options)
    return found[0].state_dict() if found else None, records


def message_of(world: World, checkpoint: Path, parallel: str, bad: float | None = None, **changes) -> str:
    try:
        train(Slices(world, bad), [job(changes)], checkpoint, world=world, parallel=parallel, checkpoint_tokens=1)
    except RunError as error:
        return str(error)
    return "no error"


@contextlib.contextmanager
def no_room(here: bool) -> Iterator[None]:
    """No file of this process can grow beyond 1,000 bytes: less than a checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]) if here else before)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def work(out: Path) -> None:
    """What each of two processes does; the last of it is that process 1 dies."""
    torch.set_default_dtype(torch.float64)
    loop.STATISTICS_TOKENS = 200
    backend.has_numba = lambda: False
    world = World()
    result: dict = {name: trained(world, name, out / f"{name}.pt") for name in CASES}
    for name in ("data topk", "data batchtopk", "features topk"):
        again = out / f"{name} again.pt"
        with contextlib.suppress(Stop):
            trained(world, name, again, on_step=stop_at(23), checkpoint_tokens=1)
        parallel, changes = CASES[name]
        with no_room(world.rank == 1 or parallel == "data"):
            result[f"{name} full"] = message_of(world, again, parallel, **changes)
        result[f"{name} resumed"] = trained(world, name, again)
    result["messages"] = {
        "nan data": message_of(world, out / "nan data.pt", "data", bad=torch.nan),
        "nan features": message_of(world, out / "nan features.pt", "features", bad=torch.nan),
        "rule": message_of(world, out / "no.pt", "features", activation="batchtopk"),
        "odd": message_of(world, out / "no.pt", "features", n_features=25),
        "other mode": message_of(world, out / "data topk.pt", "features", **NESTED),
    }
    torch.save(result, out / f"rank{world.rank}.out")
    world.wait()
    if world.rank == 1:
        os._exit(DEATH)  # without a word, while the other waits
    world.wait()
    (out / "went on").touch()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(folder, [what process 0 got, what process 1 got])."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += ["--monitor-interval=0.1", __file__, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if "cannot reach each other" in done.stderr:
        pytest.skip("two processes cannot reach each other here: no network interface that gloo can use")
    assert f"exitcode  : {DEATH} " in done.stderr, done.stderr[-4_000:]
    assert done.returncode != 0
    return out, [torch.load(out / f"rank{rank}.out") for rank in range(PROCESSES)]


@pytest.fixture(autouse=True)
def short(double, monkeypatch):
    monkeypatch.setattr(loop, "STATISTICS_TOKENS", 200)
    monkeypatch.setattr(backend, "has_numba", lambda: False)  # PyTorch's results are the same to the bit every time


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[n] - e).abs().max() / e.abs().max().clamp(min=1e-6)) for n, e in expected.items())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(both, name, tmp_path):
    (first, records), (second, others) = both[1][0][name], both[1][1][name]
    expected, alone = trained(World(), name, tmp_path / "c.pt")
    assert len(records) == len(alone) == STEPS
    assert distance(first, expected) < TOLERANCE
    if CASES[name][0] == "data":
        assert all(torch.equal(first[key], second[key]) for key in first)
    else:
        assert second is None
    for step, other, one in zip(records, others, alone, strict=True):
        for key in step.keys() - {"job", "phase", "tokens_per_s", "eta_s"}:
            assert step[key] == pytest.approx(one[key], rel=TOLERANCE), key
            assert step[key] == other[key], key


@pytest.mark.parametrize("name", ["data topk", "features topk"])
def test_these_runs_were_clipped_and_had_dead_features(both, name):
    """At some steps, not at others; else their equality would say nothing about it."""
    _, records = both[1][0][name]
    assert 0 < sum(r["gradient_norm"] > TRAINING.clip for r in records) < STEPS
    assert 5 < sum("auxiliary" in r for r in records) < STEPS


@pytest.mark.parametrize("name", ["data topk", "data batchtopk", "features topk"])
def test_resuming_is_exact(both, name):
    """Also after a checkpoint that could not be written, in feature parallel on process 1 alone."""
    messages = [result[f"{name} full"] for result in both[1]]
    assert "cannot write" in messages[0]
    assert messages[0] == messages[1]
    (whole, records), (resumed, rest) = both[1][0][name], both[1][0][f"{name} resumed"]
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert [r["step"] for r in rest] == list(range(21, STEPS + 1)), "from the last block's end on"
    assert [r["loss"] for r in rest] == [r["loss"] for r in records[20:]]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("nan data", "not finite"),
        ("nan features", "not finite"),
        ("rule", "feature parallel supports topk, not batchtopk"),
        ("odd", "n_features 25 must be a multiple of the 2"),
        ("other mode", "parallel data ≠ features"),
    ],
)
def test_what_fails_on_one_stops_both(both, case, text):
    """Not a number in process 1's tokens among them."""
    messages = [result["messages"][case] for result in both[1]]
    assert text in messages[0]
    assert messages[0] == messages[1]


def test_one_whole_set_of_shares_is_left(both):
    names = [path.name for path in shares_of(both[0] / "features topk.pt")]
    assert [name.split(".")[-2] for name in names] == ["rank0", "rank1"]
    assert len({name.split(".")[-3] for name in names}) == 1


@pytest.mark.parametrize("name", ["data topk", "features topk"])
def test_another_number_of_processes_is_refused(both, name):
    with pytest.raises(RunError, match="world_size 2 ≠ 1"):
        trained(World(), name, both[0] / f"{name}.pt")


def test_a_process_that_dies_ends_the_other(both):
    """`torchrun` stops the one that waits, which would else wait until TIMEOUT."""
    assert both[0].joinpath("rank0.out").exists()
    assert not both[0].joinpath("went on").exists()


if __name__ == "__main__":
    work(Path(sys.argv[1]))

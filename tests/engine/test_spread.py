"""Parts of a task done by processes of every backend: the same files, whoever dies meanwhile."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from isotrace.base.errors import InputError, RunError
from isotrace.engine.backends.backend import BACKENDS, Placement
from isotrace.engine.spread import THREADS, Task, one_thread, spread

ray_installed = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("ray") is None, reason="ray is not installed: it is an extra"
)
BY_NAME = [pytest.param(name, marks=[ray_installed] if name == "ray" else []) for name in BACKENDS]


@dataclass(frozen=True)
class Spec:
    """`fatal`: a part whose process dies the first `times` times, or that raises then where `kind` says so. `pause`:
    seconds that a part takes."""

    folder: Path
    fatal: int = -1
    times: int = 0
    kind: str = "kill"
    pause: float = 0


def prepare(spec: Spec):
    """A part writes its square and what threads it may use; every call of this is counted by a file."""
    (spec.folder / f"prepared-{os.getpid()}-{time.monotonic_ns()}").touch()

    def do(part: int) -> None:
        tried = len([*spec.folder.glob(f"try-{part}-*")])
        (spec.folder / f"try-{part}-{tried}").touch()
        if part == spec.fatal and tried < spec.times:
            if spec.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"input": InputError, "other": ValueError}[spec.kind]("no such thing")
        time.sleep(spec.pause)
        threads = {os.environ[name] for name in THREADS}
        (spec.folder / f"part-{part}").write_text(f"{part**2} {threads} {Path.cwd()}")

    return do


def made(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("part-*"))}


def done_by(backend: str, workers: int, folder: Path, n: int = 6, **spec) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    spread(Task.of(prepare, Spec(folder, **spec)), range(n), backend, Placement(workers, folder), label="squares")
    return made(folder)


@pytest.fixture(scope="module", autouse=True)
def _token(tmp_path_factory):
    """What a Ray cluster lets in by; read once a process."""
    path = tmp_path_factory.mktemp("ray") / "token"
    path.write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        yield


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    """Jobs find `prepare`, as they would that of an installed package."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


EXPECTED = {f"part-{i}": f"{i**2} {{'1'}} {os.getcwd()}" for i in range(6)}


@pytest.mark.parametrize("backend", BY_NAME)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_one_worker_and_many_write_the_same(backend, workers, tmp_path):
    assert done_by(backend, workers, tmp_path / "run") == EXPECTED
    assert len([*(tmp_path / "run").glob("prepared-*")]) <= max(workers, 1 if backend == "local" else workers)


@pytest.mark.parametrize("backend", BY_NAME)
def test_a_worker_that_is_killed_is_made_up_for(backend, tmp_path):
    assert done_by(backend, 2, tmp_path / "run", fatal=3, times=1) == EXPECTED
    assert len([*(tmp_path / "run").glob("try-3-*")]) >= 2


@pytest.mark.parametrize("backend", BY_NAME)
def test_what_fails_again_and_again_is_told_and_the_rest_is_done(backend, tmp_path):
    with pytest.raises(RunError, match=r"1 of 6 parts failed 3 times, the first: .*no such thing"):
        done_by(backend, 2, tmp_path / "run", fatal=3, times=99, kind="other")
    assert made(tmp_path / "run") == {name: text for name, text in EXPECTED.items() if name != "part-3"}


def test_what_a_user_can_mend_is_left_to_who_asked(tmp_path):
    assert [*done_by("local", 2, tmp_path / "run", fatal=3, times=99, kind="input")] == [
        name for name in EXPECTED if name != "part-3"
    ]
    assert len([*(tmp_path / "run").glob("try-3-*")]) == 1


def refused(spec: Spec):
    (spec.folder / f"refused-{time.monotonic_ns()}").touch()
    raise InputError("no such data")


def test_what_is_refused_at_the_start_is_not_begun_for_every_part(tmp_path):
    spread(Task.of(refused, Spec(tmp_path)), range(6), "local", Placement(1), label="")
    assert len([*tmp_path.glob("refused-*")]) == 1


def slow(spec: Spec):
    def do(part: int) -> None:
        (spec.folder / f"pid-{part}").write_text(str(os.getpid()))
        time.sleep(120)

    return do


def gone(folder: Path, n: int) -> bool:
    """Whether the processes of `n` parts, once they are there, end within seconds."""
    ends = time.monotonic() + 60
    while len([path for path in folder.glob("pid-*") if path.read_text()]) < n and time.monotonic() < ends:
        time.sleep(0.1)
    pids = [int(path.read_text()) for path in folder.glob("pid-*")]
    yield len(pids) == n
    ends = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < ends:
        time.sleep(0.1)
    yield not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked for in /proc")
def test_workers_end_with_who_asked(tmp_path):
    code = (
        "from test_spread import *\n"
        f"spread(Task.of(slow, Spec(Path({str(tmp_path)!r}))), range(2), 'local', Placement(2), label='')"
    )
    asked = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    seen = gone(tmp_path, 2)
    assert next(seen)
    asked.kill()
    asked.wait()
    assert next(seen)


def test_workers_end_where_who_asked_is_stopped(tmp_path):
    """As Ctrl-C would, once both are at work; a part takes two minutes."""
    seen = gone(tmp_path, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some library lets waiting go on behind a signal

    def stop():
        assert next(seen)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # as the kernel does

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        spread(Task.of(slow, Spec(tmp_path)), range(2), "local", Placement(2), label="")
    stopper.join()
    assert next(seen)
    assert not multiprocessing.active_children()


def test_another_task_of_the_process_is_prepared_anew(tmp_path):
    first, second = (Task.of(prepare, Spec(tmp_path / name)) for name in ("a", "b"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with one_thread():
        for task in (first, first, second):
            task(1)
    assert [len([*(tmp_path / name).glob("prepared-*")]) for name in ("a", "b")] == [1, 1]


def test_threads_of_who_asked_stay_as_they_were(monkeypatch):
    monkeypatch.setenv(THREADS[0], "7")
    monkeypatch.delenv(THREADS[1], raising=False)
    with one_thread():
        assert os.environ[THREADS[0]] == os.environ[THREADS[1]] == "1"
    assert os.environ[THREADS[0]] == "7"
    assert THREADS[1] not in os.environ


def test_what_cannot_be_placed_is_told(tmp_path):
    task = Task.of(prepare, Spec(tmp_path))
    with pytest.raises(InputError, match="0 workers"):
        Placement(0)
    with pytest.raises(InputError, match="no backend 'dask'"):
        spread(task, [1], "dask", Placement(1), label="")
    with pytest.raises(InputError, match="give --out"):
        spread(task, [1], "slurm", Placement(1), label="")
    spread(task, [], "local", Placement(1), label="")  # nothing to do


@ray_installed
def test_a_node_of_ray_that_goes_away_is_made_up_for(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)

    def lost(parts, label):
        """The node goes away when the first part is done."""
        for at, part in enumerate(parts):
            yield part
            if at == 0:
                cluster.remove_node(node, allow_graceful=False)

    try:
        task = Task.of(prepare, Spec(tmp_path, pause=1))
        spread(task, range(6), "ray", Placement(2), label="squares", progress=lost)
        assert made(tmp_path) == EXPECTED
        ends = time.monotonic() + 60
        while len([one for one in ray.nodes() if one["Alive"]]) > 1 and time.monotonic() < ends:
            time.sleep(0.5)
        assert len([one for one in ray.nodes() if one["Alive"]]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()

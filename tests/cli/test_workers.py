"""Commands whose work others share leave what they leave alone: whoever does the parts, in what order, and who dies."""

import os
import pickle
import signal
import sys
from multiprocessing import active_children

import killing
import pytest

from isotrace.activations import store
from isotrace.base import work
from isotrace.cli import main
from isotrace.engine.backends.backend import BACKENDS

ALL = ("--sources", "dictionary,neurons,untrained,random,token_identity", "--untrained-tokens", "1000")
MORE = {"annotate": ALL}
CASES = ["annotate", "circuit", "steer", "harvest"]
LEFT = {"annotate": 0, "circuit": 3, "steer": 0, "harvest": 0}
"""Files that a command writes when its parts are done: of circuits what is not worth a part, the circuit and as many
neurons taken away, and the unsigned one."""
BUSY = []
"""The part that is being done."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A subject, a dictionary, data; and by case what the command leaves alone."""
    made = tmp_path_factory.mktemp("workers")
    killing.prepare(made)
    return made


def run(root, case, out, *more):
    """What the command leaves, see `killing.content`."""
    words = ("isotrace", *killing.CASES[case], *MORE.get(case, ()), "--domain", "molecule", "--out", out, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", [*map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return killing.content(root / out)


@pytest.fixture(scope="module")
def alone(root):
    found = {}
    return lambda case: found.get(case) or found.setdefault(case, run(root, case, f"{case}-alone"))


@pytest.fixture
def wrote(monkeypatch):
    """(by a worker in this process?, file of work), as they are written."""
    found, plain = [], work.write_whole

    def write(path, content):
        if path.name != work.LEDGER:
            found.append((bool(BUSY), path.name))
        return plain(path, content)

    for room in (work, store):
        monkeypatch.setattr(room, "write_whole", write)
    return found


@pytest.fixture
def backwards():
    """Parts are done in this process, the last first, by what another one would be given."""

    def backend(task, parts, placement):
        task = pickle.loads(pickle.dumps(task))
        for place in reversed(range(len(parts))):
            BUSY.append(place)
            task(pickle.loads(pickle.dumps(parts[place])))
            BUSY.clear()
            yield place, None

    BACKENDS.register("backwards", backend)
    yield "backwards"
    BACKENDS.remove("backwards")


@pytest.fixture
def dying():
    """Processes of this machine, one of which is killed when a part is done, for the first of everything shared."""
    killed = []

    def backend(task, parts, placement):
        others = {*active_children()}
        for found in BACKENDS["local"](task, parts, placement):
            yield found
            mine = sorted({*active_children()} - others, key=lambda child: child.pid)
            if len(killed) < 2 and len(parts) > 1 and mine:
                os.kill(mine[0].pid, signal.SIGKILL)
                killed.append(mine[0].pid)

    BACKENDS.register("dying", backend)
    yield killed
    BACKENDS.remove("dying")


@pytest.mark.parametrize("case", CASES)
def test_parts_done_by_others_are_found(case, root, alone, wrote, backwards):
    expected = alone(case)
    wrote.clear()
    assert run(root, case, f"{case}-shared", "--workers", 2, "--backend", backwards) == expected
    shared = [name for by_worker, name in wrote if by_worker]
    assert len(shared) > 4
    assert len({*shared}) == len(shared)  # no two parts write the same file
    first = wrote.index((True, shared[0]))
    assert len([name for by_worker, name in wrote[first:] if not by_worker]) <= LEFT[case]


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_one_worker_and_many_leave_the_same(case, workers, root, alone):
    assert run(root, case, f"{case}-{workers}", "--workers", workers) == alone(case)


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("case", CASES)
def test_a_worker_that_is_killed_changes_nothing(case, root, alone, dying):
    assert run(root, case, f"{case}-killed", "--workers", 2, "--backend", "dying") == alone(case)
    assert dying

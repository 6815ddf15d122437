"""Killed at any moment and run again, a command leaves what it leaves undisturbed."""

import os
import random
import subprocess
import sys

import killing
import pytest

CASES = ("train", "harvest", "annotate", "circuit", "steer", "many")


def killed(root, seed, n, *cases):
    if not hasattr(os, "fork"):
        pytest.skip("killing commands needs fork")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, killing.__file__, str(root), str(seed), str(n), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2_000:]


@pytest.mark.timeout(900)
def test_commands_that_are_killed_go_on(tmp_path):
    killed(tmp_path, 0, 1, "many")  # trainings: tests/training/test_resume.py, tests/cli/test_train.py


@pytest.mark.nightly
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("case", CASES)
def test_commands_that_are_killed_at_many_moments_go_on(tmp_path, case):
    seed = random.randrange(2**32)
    print(f"python tests/cli/killing.py FOLDER {seed} 20 {case}")  # which pytest shows of a test that failed
    killed(tmp_path, seed, 20, case)

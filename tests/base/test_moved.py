"""Module paths of the first layout are the modules of today, once."""

import subprocess
import sys
from importlib import import_module

import pytest

from isotrace.base.moved import MOVED


@pytest.mark.parametrize("old", [*MOVED, "isotrace.circuits.trace"])
def test_old_paths_are_the_modules_of_today(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match="now: import that"):
        found = import_module(old)
    assert found is import_module(MOVED.get(old, "isotrace.attribution.trace"))
    assert found.__spec__.name == found.__name__  # the module itself was not renamed


def test_what_never_was_is_not_found():
    code = "import isotrace, importlib.util as u; print(u.find_spec('isotrace.nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr

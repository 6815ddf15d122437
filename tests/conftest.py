import os
import runpy
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

import tiny
from isotrace.discovery.tasks import choice
from isotrace.domains.domain import DOMAINS
from isotrace.report.trace import payload
from isotrace.verbs import tracing

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _few():
    """Circuits of tasks are halved twice, which is as many ways as five are to a test, in half the time; a trace takes
    the mean of neurons over twenty sequences, and draws the examples of eight features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "HALVINGS", 2)
        patch.setattr(tracing, "BACKGROUND", 20)
        patch.setattr(payload, "CARDS", 8)
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder of every tiny subject, by variant."""
    root = tmp_path_factory.mktemp("subjects")
    return {v: tiny.save_subject(tiny.tiny_model(v), root / v) for v in tiny.VARIANTS}


@pytest.fixture(scope="session")
def _loaded(folders):
    """[float32, float64] subjects by variant: loading is the slow part, and no test writes to them."""
    return {v: (tiny.load_tiny(f), tiny.in_float64(tiny.load_tiny(f))) for v, f in folders.items()}


# Few tests but long ones: begun first, so that no process is left alone with one at the end.
LONG = (
    "test_kills.py", "test_threads.py", "test_examples.py", "test_devices.py", "test_docs.py", "test_cli.py",
    "test_task_circuit.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG, -count[item.path]))


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        every = metafunc.definition.get_closest_marker("every_family")
        variants = tiny.VARIANTS if every else tiny.VARIANTS[:4]
        aside = metafunc.module.__name__ not in OF_ALL
        metafunc.parametrize("variant", [_nightly(v) if aside and v == "smited" else v for v in variants])


# SMI-TED's blocks are MoLFormer's: what every family must hold is tested of both at every change, the rest at night.
OF_ALL = (
    "test_conformance", "test_frozen", "test_families_loading", "test_families_prediction", "test_hookpoints",
    "test_graph", "test_edges", "test_readers", "test_edit_laws",
)  # fmt: skip


def _nightly(variant):
    return pytest.param(variant, marks=pytest.mark.nightly)


@pytest.fixture
def subject(_loaded, variant):
    """A tiny float32 subject."""
    return _loaded[variant][0]


@pytest.fixture
def double():
    """float64 as torch's default, so that dictionaries and graphs made in the test are float64 too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def subject64(_loaded, variant, double):
    """The same subject in float64."""
    return _loaded[variant][1]


@pytest.fixture
def rotary(_loaded):
    """One float32 subject, where one architecture is enough."""
    return _loaded["esm-rotary"][0]


@pytest.fixture(scope="session")
def causals(_loaded):
    """The causal subjects in float32, by variant."""
    return {variant: _loaded[variant][0] for variant in ("gpt2", "llama")}


@pytest.fixture
def rotary64(_loaded, double):
    return _loaded["esm-rotary"][1]


@pytest.fixture(scope="module")
def genes():
    """The domain of docs/a-third-domain.md, known while a module's tests run; its class."""
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "plugins" / "genes.py"))
    yield type(DOMAINS["gene"])
    DOMAINS.remove("gene")


@pytest.fixture(scope="session")
def relu_subject(tmp_path_factory):
    """A BERT with ReLU MLPs, slightly trained: `tiny.exact_dictionary` reproduces it without error."""
    folder = tmp_path_factory.mktemp("relu") / "bert"
    model = tiny.fit(tiny.tiny_model("bert", hidden_act="relu").eval(), tiny.MOLECULES, steps=60)
    return tiny.load_tiny(tiny.save_subject(model, folder))

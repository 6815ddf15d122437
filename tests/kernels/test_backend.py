"""The choice of a backend, its buffers, and its machine code where the cache folder cannot be written."""

import gc
import os
import subprocess
import sys

import pytest
import torch

from isotrace.base.errors import IsotraceError
from isotrace.kernels import MissingExtraError, memory, resolve, sparse_decode
from isotrace.kernels import backend as chooser

needs_numba = pytest.mark.skipif(not chooser.has_numba(), reason="the optional numba is not installed")


def test_auto_takes_numba_only_where_it_runs(monkeypatch):
    monkeypatch.setattr(chooser, "has_numba", lambda: True)
    assert resolve("auto", torch.zeros(1)) == "numba"
    assert resolve("auto", torch.zeros(1, device="meta")) == "torch"
    with pytest.raises(IsotraceError, match=r"backend='torch'"):
        resolve("numba", torch.zeros(1, device="meta"))


def test_absent_numba_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(chooser, "has_numba", lambda: False)
    assert resolve("auto", torch.zeros(1)) == "torch"
    with pytest.raises(MissingExtraError, match=r"isotrace\[fast\]") as raised:
        resolve("numba", torch.zeros(1))
    assert isinstance(raised.value, ImportError)


def test_unknown_backend():
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        resolve("cuda", torch.zeros(1))


def test_wrong_shapes_are_refused():
    values, indices = [torch.ones(3, 2)] * 2, [torch.zeros(3, 2, dtype=torch.int64)] * 2
    with pytest.raises(ValueError, match=r"layer 0: .*\[F, 8\]"):
        sparse_decode(values, indices, [torch.zeros(5, 4)] * 2, 4, 2)
    with pytest.raises(ValueError, match="one entry per layer"):
        sparse_decode(values, indices, [torch.zeros(5, 8)], 4, 2)


def test_a_buffer_comes_back_only_when_no_tensor_uses_it():
    memory.clear()
    shape = (512, 1024)
    first = memory.empty(shape, torch.float32)
    place = first.data_ptr()
    view = first.T[3:]
    del first
    gc.collect()
    second = memory.empty(shape, torch.float32)
    assert second.data_ptr() != place  # the view still uses the first
    del view
    gc.collect()
    assert memory.empty(shape, torch.float32).data_ptr() == place
    memory.clear()


def test_unused_buffers_are_bounded(monkeypatch):
    """What does not fit goes back to the system, and sizes that nobody asks for any more make room."""
    megabyte = 2**20
    monkeypatch.setattr(memory, "KEPT_BYTES", 4 * megabyte)
    memory.clear()
    several = [memory.empty((megabyte,), torch.uint8) for _ in range(6)]
    del several
    gc.collect()
    assert memory.held() == 4 * megabyte
    larger = memory.empty((3 * megabyte,), torch.uint8)
    assert memory.held() == 0
    del larger
    gc.collect()
    assert memory.held() == 3 * megabyte
    memory.clear()
    assert memory.held() == 0


@needs_numba
def test_gradients_of_two_steps_do_not_share_memory():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(2048, 256, generator=generator, requires_grad=True)
    indices = torch.rand(64, 2048, generator=generator).topk(4).indices
    kept = []
    for scale in (1.0, 2.0):
        sparse_decode([torch.full((64, 4), scale)], [indices], [W_dec], 256, 1, backend="numba").sum().backward()
        kept.append(W_dec.grad)
        W_dec.grad = None
    assert torch.equal(2 * kept[0], kept[1])
    assert kept[0].any()


@needs_numba
def test_threads_share_the_work_and_change_nothing():
    generator = torch.Generator().manual_seed(1)
    W_dec = torch.randn(300, 24, generator=generator, requires_grad=True)
    indices, values = torch.rand(97, 300, generator=generator).topk(5).indices, torch.rand(97, 5, generator=generator)

    def run():
        W_dec.grad = None
        output = sparse_decode([values], [indices], [W_dec], 24, 1, backend="numba")
        output.square().sum().backward()
        return output.detach(), W_dec.grad

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(3)
        together = run()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


@needs_numba
def test_an_unwritable_cache_folder_is_no_obstacle(tmp_path):
    """Without any folder for its cache, Numba refuses to decorate: the kernels compile again instead."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "from isotrace.kernels import jit\n"
        "import numpy as np\n"
        "print(jit.dot(np.ones(4), np.ones(4)), type(jit.dot._cache).__name__)\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(blocked)}
    got = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment)
    assert got.stdout.split() == ["4.0", "NullCache"], got.stderr

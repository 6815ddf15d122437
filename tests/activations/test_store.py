"""A store holds what was harvested, survives kills and full disks, and never reads a bad shard in silence."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from isotrace.activations.harvest import Corpus
from isotrace.activations.manifest import read_manifest, write_manifest
from isotrace.activations.store import StoreStream, write_store
from isotrace.activations.stream import SubjectStream
from isotrace.base.errors import RunError
from isotrace.base.identity import identity, sha256_file

HOOKPOINTS = ("layers.0.mlp_in", "layers.1.resid_post")
STRINGS = [a + b for a in tiny.MOLECULES for b in tiny.MOLECULES]
STORE = {"tokens": 1_000, "dtype": "float32", "shard_tokens": 300}


def stream_of(subject, **changes):
    settings = {"block_tokens": 150, "batch_tokens": 40, "mask_rate": 0.2, "seed": 3, "special_tokens": True}
    return SubjectStream(subject, Corpus.of(subject, STRINGS), HOOKPOINTS, **settings | changes)


def write(subject, folder, progress=lambda done, goal: None, **changes):
    return write_store(stream_of(subject), folder, **STORE | {"progress": progress} | changes)


def read(folder, hookpoints=None, warn=lambda reason: pytest.fail(reason), **changes):
    return StoreStream(
        folder, hookpoints, **{"block_tokens": 170, "seed": 1, "bad_shards": "error", "warn": warn} | changes
    )


def first(stream, count, start=0):
    blocks = stream.blocks(start)
    return [next(blocks) for _ in range(count)]


def rows(tensor):
    """Multiset of rows of `[n_hookpoints, tokens, d]`."""
    return sorted(map(tuple, tensor.transpose(0, 1).flatten(1).tolist()))


def hashes(folder):
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}


@pytest.fixture
def folder(rotary, tmp_path):
    write(rotary, tmp_path / "store")
    return tmp_path / "store"


def test_a_store_holds_the_stream(rotary, folder):
    manifest = read_manifest(folder)
    assert manifest.written == 1_000
    assert len(manifest.shards) == 4
    shards = [load_file(folder / shard.file) for shard in manifest.shards]
    found = torch.stack([torch.cat([shard[name] for shard in shards]) for name in HOOKPOINTS])
    blocks = first(stream_of(rotary), 7)
    expected = torch.cat([block.activations for block in blocks], 1)[:, :1_000]
    assert torch.equal(found, expected)
    assert manifest.subject.identity == identity(rotary)
    assert manifest.stream == stream_of(rotary).describe()


def test_an_epoch_reads_every_token_once(folder):
    epoch = first(read(folder, block_tokens=100), 20)
    shards = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    held = rows(torch.stack([torch.cat([shard[name] for shard in shards]) for name in HOOKPOINTS]))
    assert rows(torch.cat([block.activations for block in epoch[:10]], 1)) == held
    assert rows(torch.cat([block.activations for block in epoch[10:]], 1)) == held
    assert not torch.equal(epoch[0].activations, epoch[10].activations), "epochs differ in order"


def test_reading_resumes_at_every_position(folder):
    whole = first(read(folder), 9)  # blocks that cross shards and epochs
    assert all(block.activations.shape == (2, 170, tiny.D_MODEL) for block in whole)
    for i in range(8):
        again = first(read(folder), 1, whole[i].position)[0]
        assert again.position == whole[i + 1].position
        assert torch.equal(again.activations, whole[i + 1].activations)


def test_some_hookpoints_in_another_order(folder):
    both, one = first(read(folder), 1)[0], first(read(folder, HOOKPOINTS[1:]), 1)[0]
    assert torch.equal(one.activations, both.activations[1:])
    with pytest.raises(RunError, match=r"no 'layers.2.mlp_in'.*it holds layers.0.mlp_in"):
        read(folder, ["layers.2.mlp_in"])


def test_ranks_share_the_blocks(folder):
    whole = first(read(folder), 6)
    for rank in range(2):
        part = first(read(folder, rank=rank, world_size=2), 3)
        assert all(torch.equal(a.activations, b.activations) for a, b in zip(part, whole[rank::2], strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_smaller_dtype_is_the_rounded_value(rotary, folder, tmp_path, dtype):
    write(rotary, tmp_path / dtype, dtype=dtype)
    found, exact = (first(read(f), 1)[0].activations for f in (tmp_path / dtype, folder))
    assert found.dtype == torch.float32
    assert torch.equal(found, exact.to(getattr(torch, dtype)).float())


def test_a_kill_in_between_changes_nothing(folder, folders, tmp_path):
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
import tiny, test_store
def kill(done, goal):
    if done > 400:
        os.kill(os.getpid(), signal.SIGKILL)
test_store.write(tiny.load_tiny({str(folders["esm-rotary"])!r}), {str(tmp_path / "killed")!r}, kill)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (tmp_path / "killed" / ".isotrace-shard-00002.safetensors.tmp").write_bytes(b"half a sh")
    with pytest.raises(RunError, match="of 1000 tokens"):
        read(tmp_path / "killed")
    kept = hashes(tmp_path / "killed")
    times = (tmp_path / "killed" / "shard-00000.safetensors").stat().st_mtime_ns
    write(tiny.load_tiny(folders["esm-rotary"]), tmp_path / "killed")
    assert len([name for name in kept if name.startswith("shard")]) == 2
    assert (tmp_path / "killed" / "shard-00000.safetensors").stat().st_mtime_ns == times
    assert hashes(tmp_path / "killed") == hashes(folder)


def test_a_full_disk_keeps_the_shards(rotary, folder, tmp_path):
    """A limit on the size of a file, which the second shard meets, stands for the disk."""
    small = min(file.stat().st_size for file in folder.glob("*.safetensors"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = lambda done, goal: resource.setrlimit(resource.RLIMIT_FSIZE, (small // 2, before[1]))  # noqa: E731
    try:
        with pytest.raises(RunError, match=r"cannot write .*shard-00001.safetensors .*free space"):
            write(rotary, tmp_path / "full", limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {file.name for file in (tmp_path / "full").iterdir()} == {"manifest.json", "shard-00000.safetensors"}
    write(rotary, tmp_path / "full")
    assert hashes(tmp_path / "full") == hashes(folder)


def test_writing_where_it_does_not_belong(rotary, folder, tmp_path):
    with pytest.raises(RunError, match="other settings"):
        write(rotary, folder, tokens=2_000)
    (tmp_path / "empty").mkdir()
    write_manifest(tmp_path / "empty", replace(read_manifest(folder), shards=()))  # stopped before its first shard
    write(rotary, tmp_path / "empty", tokens=200)
    assert read_manifest(tmp_path / "empty").written == 200
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="no activation store"):
        write(rotary, tmp_path / "taken")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot use the folder"):
        write(rotary, tmp_path / "file" / "store")


def test_values_beyond_a_dtype_are_refused(rotary, tmp_path, monkeypatch):
    stream = stream_of(rotary)
    monkeypatch.setattr(stream, "_harvest", lambda gathered, count, number: torch.full((2, count, tiny.D_MODEL), 7e4))
    with pytest.raises(RunError, match="not finite in float16"):
        write_store(stream, tmp_path / "store", **STORE | {"dtype": "float16", "progress": print})


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def poison(path):
    tensors = load_file(path)
    tensors[HOOKPOINTS[1]][5, 3] = float("nan")
    save_file(tensors, path)
    rewrite(path)


def reshape(path):
    save_file({name: tensor[1:] for name, tensor in load_file(path).items()}, path)
    rewrite(path)


def rename(path):
    save_file({"other": torch.zeros(1)}, path)
    rewrite(path)


def rewrite(path):
    """The manifest believes the changed file."""
    text = (path.parent / "manifest.json").read_text()
    manifest = json.loads(text)
    old = next(shard["sha256"] for shard in manifest["shards"] if shard["file"] == path.name)
    (path.parent / "manifest.json").write_text(text.replace(old, sha256_file(path)))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (remove, "is missing"), (cut, "cut short"), (flip, "damaged"), (poison, "NaN or infinity at layers.1"),
        (reshape, "another shape"), (rename, "no shard of this store"),
    ],
)  # fmt: skip
def test_a_bad_shard(folder, harm, reason):
    bad = folder / "shard-00001.safetensors"
    lost = rows(torch.stack([load_file(bad)[name] for name in HOOKPOINTS]))
    whole = rows(torch.cat([block.activations for block in first(read(folder, block_tokens=100), 10)], 1))
    harm(bad)
    with pytest.raises(RunError, match=rf"shard-00001.safetensors .*{reason}"):
        first(read(folder, block_tokens=100), 10)
    said = []
    stream = read(folder, block_tokens=100, bad_shards="skip", warn=said.append)
    found, blocks = [], stream.blocks()
    while len(found) < len(whole) - len(lost):
        found += rows(next(blocks).activations)
    assert sorted([*found, *lost]) == whole
    assert stream.skipped == ["shard-00001.safetensors"]
    assert len(said) == 1
    assert reason in said[0]


def test_nothing_but_bad_shards(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(RunError, match="every shard"):
        first(read(folder, bad_shards="skip", warn=lambda reason: None), 1)


def test_manifests_that_are_not_ours(folder, tmp_path):
    with pytest.raises(RunError, match="no activation store"):
        read(tmp_path)
    text = (folder / "manifest.json").read_text()
    for change, reason in [
        (text.replace('"d":', '"D":'), "d|D"),
        (text.replace('"format_version": 2', '"format_version": 1'), "format_version"),
        (text[:50], "version 2"),
    ]:
        (folder / "manifest.json").write_text(change)
        with pytest.raises(RunError, match=reason):
            read(folder)


def test_memory_does_not_grow_with_the_store(tmp_path, rotary):
    """Read three times over, a store of 60 MB passes through without staying."""
    write(rotary, tmp_path / "store", tokens=1, shard_tokens=1)
    manifest, shard = read_manifest(tmp_path / "store"), tmp_path / "store" / "shard-00000.safetensors"
    n = 480_000
    save_file({name: torch.rand(n, tiny.D_MODEL) for name in HOOKPOINTS}, shard)
    one = manifest.shards[0].__class__(shard.name, n, sha256_file(shard), 1)
    changed = manifest.__class__(**manifest.__dict__ | {"tokens": n, "shard_tokens": n, "shards": (one,)})
    write_manifest(tmp_path / "store", changed)
    blocks, process = read(tmp_path / "store", block_tokens=20_000).blocks(), psutil.Process(os.getpid())
    for _ in range(5):
        next(blocks)
    before = process.memory_info().rss
    for _ in range(60):
        next(blocks)
    assert process.memory_info().rss - before < 10e6

"""Real commands on tiny subjects, killed at random moments: `killing.py ROOT SEED N CASE…` says what went wrong.

Commands run in forks of this process, which has imported everything, so that a kill falls into the work and not into
the imports. Each is killed once or twice, by SIGKILL or Ctrl-C, then run to its end, and must leave what a run that
nobody disturbed left.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

import tiny
from isotrace.cli import main
from isotrace.cli.commands import app
from isotrace.dictionaries.saving import reference, save_dictionary

assert app  # imported for its imports
TEXTS = [f"{'C' * a}{link}{'C' * b}{end}" for a in range(1, 5) for b in range(1, 5)
         for link in ("O", "N", "C(Br)C", "C(Cl)C") for end in ("", "O", "N")]  # fmt: skip
CONFIG = """
[training]
batch_tokens = 64
dtype = "float32"
dead_after = 512
finetune_tokens = 1200
finetune_batch_tokens = 100
[stream]
block_tokens = 256
harvest_tokens = 128
"""
CASES = {
    "train": ("train", "bert", "--data", "data.csv", "--architecture", "crosslayer", "--features", 12, "--k", 2,
              "--tokens", 5_000, "--config", "train.toml"),
    "harvest": ("harvest", "bert", "--data", "data.csv", "--tokens", 6_000, "--shard-tokens", 300),
    "annotate": ("annotate", "bert", "clt", "--data", "data.csv", "--permutations", 60, "--bootstrap", 20,
                 "--spellings", 1, "--min-positive", 5, "--sources", "dictionary,neurons,token_identity"),
    "circuit": ("circuit", "bert", "clt", "--data", "data.csv", "--label", "bromine", "--sizes", "2,6,12", "--controls",
                4, "--bootstrap", 20, "--drawn", 2),
    "steer": ("steer", "bert", "data.csv", "--label", "bromine", "--group", "smiles", "--layers", "1", "--dose",
              "0.005,0.02", "--starts", 4, "--development", 4, "--designs", 2, "--twins", 4),
    "many": ("trace", "bert", "clt", "few.csv", "--target", "mask:2", "--max-features", 30, "--nodes", 4, "--controls",
             2, "--spellings", 0),
}  # fmt: skip
WHEN = ("tokens_per_s", "eta_s", "seconds")  # what is not the same twice


def prepare(root: Path) -> None:
    if (root / "data.csv").exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), root / "bert"))
    save_dictionary(tiny.random_dictionary(subject), root / "clt", reference(subject), dtype=torch.float32, training={})
    rows = [f"{text},{int('Br' in text)}" for text in TEXTS]
    (root / "few.csv").write_text("\n".join(["smiles,bromine", *rows[:30:5], "C?C,0"]) + "\n")
    (root / "train.toml").write_text(CONFIG)
    (root / "data.csv").write_text("\n".join(["smiles,bromine", *rows, "C?C,0"]) + "\n")


def start(root: Path, case: str, out: Path, *more: str) -> int:
    """A fork that runs the command in `root`; its id. What it says goes to a file beside `out`."""
    if pid := os.fork():
        return pid
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(root)
        given = (*CASES[case], "--domain", "molecule", "--out", out.name, *more)
        sys.argv = ["isotrace", *map(str, given)]
        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(out: Path) -> dict[str, object]:
    """By name, all that was written but for pages and manifests, which say when it was; without times."""
    found: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".html" or (path.name == "manifest.json" and "shards" not in path.read_text()):
            found[name] = None
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [timeless(json.loads(line)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in (*WHEN, "folder")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def go_on(root: Path, case: str, out: Path) -> list[str]:
    """What the message says: the same command, for training with --resume once there is a run."""
    return ["--resume"] if case == "train" and (root / out.name / "manifest.json").exists() else []


def complete(out: Path) -> bool:
    place = next((p for p in (out / "summary/manifest.json", out / "manifest.json") if p.is_file()), None)
    return place is not None and json.loads(place.read_text()).get("status") == "complete"


def trial(root: Path, case: str, out: Path, lasts: float, rng: random.Random, expected: dict[str, object]) -> list[str]:
    faults, said = [], out.with_suffix(".log")
    for _ in range(rng.choice((1, 1, 2))):
        if complete(out):
            break
        pid, number = start(root, case, out, *go_on(root, case, out)), rng.choice((signal.SIGKILL, signal.SIGINT))
        time.sleep(rng.uniform(0.05, lasts))
        os.kill(pid, number)
        code = ended(pid)
        if code not in (0, -number, 130 if number == signal.SIGINT else 0):
            faults.append(f"{number.name}: exit code {code}")
        if code == 130 and "stopped; what was finished is kept: the same command" not in said.read_text():
            faults.append("Ctrl-C said nothing")
    if not complete(out) and (code := ended(start(root, case, out, *go_on(root, case, out)))):
        faults.append(f"going on ended with exit code {code}")
    if "Traceback" in said.read_text():
        faults.append("a traceback")
    found = content(out)
    if found.keys() != expected.keys():
        faults.append(f"files differ: {sorted(found.keys() ^ expected.keys())}")
    faults += [f"{name} differs" for name in found.keys() & expected.keys() if found[name] != expected[name]]
    return faults


def run(root: Path, seed: int, n: int, case: str) -> list[str]:
    """What went wrong in `n` trials; nothing, it is hoped."""
    prepare(root)
    whole, rng = root / f"{case}-whole", random.Random(seed)
    started = time.monotonic()
    if code := ended(start(root, case, whole)):
        return [f"the undisturbed run ended with {code}: {whole.with_suffix('.log').read_text()[-500:]}"]
    lasts, expected, faults = time.monotonic() - started, content(whole), []
    for i in range(n):
        out = root / f"{case}-{seed}-{i}"
        faults += [
            f"{case}, trial {i} of seed {seed}: {fault}" for fault in trial(root, case, out, lasts, rng, expected)
        ]
    return faults


if __name__ == "__main__":
    place, seed, n, *cases = sys.argv[1:]
    found = [fault for case in cases for fault in run(Path(place), int(seed), int(n), case)]
    print("\n".join(found))
    sys.exit(bool(found))

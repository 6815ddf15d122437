"""Time of whole commands before and after: another source tree against this one, and whether results are the same.

    python benchmarks/commands.py circuit --against ../before/src [--rows 1000] [--rounds 3] [--sizes 10,100 …]
    python benchmarks/commands.py annotate --against ../before/src [--rows 300] [--sources dictionary,neurons …]

What this script does not know goes to the command. Rows are drawn from `--data` (default: the bundled table `bbb`).
Every round runs the command from either tree, each in a process of its own, one after the other, and the other way
round in the next; ratios are taken within a round. CPU is that of the process, user and system. Kernels are
compiled by the first run of a tree: measure twice, or give one round more than you count.

All files of the run folder must be the same to the byte, but for `manifest.json` and pages, which name times, and the
entry `seconds` of a summary; else the script ends with 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

OWN = Path(__file__).resolve().parents[1] / "src"
DEFAULTS = {
    "circuit": {"--sizes": "10,30,100,300,1000,3000", "--controls": "20"},
    "annotate": {},
}
STAMPED = ("manifest.json", "report.html", "structure.html")


def command(args, rest: list[str], data: Path) -> list[str]:
    given = {name: value for name, value in DEFAULTS[args.verb].items() if name not in rest}
    if args.verb == "circuit":
        given["--label"] = args.label
    pairs = [part for pair in given.items() for part in pair]
    # the same words from either tree, so that the same command stands in the results
    verb = [sys.executable, "-m", "isotrace", args.verb, "bundled:molm", "bundled:molm-clt", "--data", data.name]
    return [*verb, *pairs, *rest, "--out", "run"]


def run(source: Path, words: list[str], data: Path, threads: int) -> tuple[float, float, dict[str, bytes]]:
    """(wall seconds, CPU seconds, files by name) of the command from the tree `source`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / data.name).write_bytes(data.read_bytes())
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads), "NO_COLOR": "1"}
        before, started = os.times(), time.perf_counter()
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        wall, after = time.perf_counter() - started, os.times()
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} from {source} failed:\n{done.stderr[-2000:]}")
        cpu = after.children_user - before.children_user + after.children_system - before.children_system
        files = {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder, "run").rglob("*") if p.is_file()
        }
    return wall, cpu, files


def different(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of files that are not the same."""
    plain = lambda content: re.sub(rb'"seconds": [0-9.e-]+', b"", content)  # noqa: E731
    names = {name for name in one.keys() | other.keys() if Path(name).name not in STAMPED}
    return sorted(name for name in names if plain(one.get(name, b"absent")) != plain(other.get(name, b"absent")))


def span(values) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def drawn(args, folder: Path) -> Path:
    table = OWN / "isotrace" / "assets" / "tasks" / "bbb.csv.gz" if args.data is None else Path(args.data)
    rows = pl.read_csv(table, infer_schema=False)
    path = folder / "rows.csv"
    rows.sample(min(args.rows, rows.height), seed=args.draw, shuffle=True).write_csv(path)
    return path


def measure(args, rest: list[str]) -> dict:
    trees = {"before": Path(args.against).resolve(), "after": OWN}
    with tempfile.TemporaryDirectory() as folder:
        data = drawn(args, Path(folder))
        words = command(args, rest, data)
        files: dict[str, dict[str, bytes]] = {}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
        wrong: set[str] = set()
        for number in range(args.rounds):
            for name in sorted(trees, reverse=bool(number % 2)):
                wall, cpu, files[name] = run(trees[name], words, data, args.threads)
                times[name].append((wall, cpu))
            wrong |= {*different(files["before"], files["after"])}
    measured = {name: np.asarray(values) for name, values in times.items()}
    result = {"command": " ".join(words[3:]), "rows": args.rows, "threads": args.threads, "rounds": args.rounds}
    for place, kind in enumerate(("wall", "cpu")):
        result |= {f"{name}_{kind}_s": span(values[:, place]) for name, values in measured.items()}
        result[f"{kind}_ratio"] = span(measured["before"][:, place] / measured["after"][:, place])
    return result | {"files": len(files["after"]), "different": sorted(wrong)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=DEFAULTS)
    parser.add_argument("--against", required=True, help="the folder `src` of the other tree")
    parser.add_argument("--data")
    parser.add_argument("--label", default="bbb")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draw", type=int, default=0, help="seed of the rows that are drawn")
    parser.add_argument("--json", action="store_true")
    args, rest = parser.parse_known_args()
    result = measure(args, rest)
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['command']}, {args.rows} rows, {args.threads} threads, {args.rounds} rounds")
        for kind in ("wall", "cpu"):
            old, new, r = (result[name] for name in (f"before_{kind}_s", f"after_{kind}_s", f"{kind}_ratio"))
            print(f"{kind:>4}: {old['median']:.1f} s before, {new['median']:.1f} s after, ", end="")
            print(f"{r['median']:.2f} × ({r['min']:.2f}–{r['max']:.2f})")
        print(f"{result['files']} files, different: {', '.join(result['different']) or 'none'}")
    sys.exit(1 if result["different"] else 0)


if __name__ == "__main__":
    main()

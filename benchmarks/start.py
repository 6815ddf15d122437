"""CPU seconds (user and system) of a command until its first word, beside those of `import torch`.

Every command is asked for something it cannot do, since a word that waits for the computation says nothing about the
start; `--help` and a list stand beside them. The least of three starts.
"""

import resource
import subprocess
import sys
import time

MOLM = ("bundled:molm", "bundled:molm-clt")
COMMANDS = (
    ("--help",), ("subjects",), ("trace", *MOLM, "CCO", "--target", "probe:absent"),
    ("trace", *MOLM, "absent.csv", "--target", "probe:bbb"), ("evaluate", *MOLM, "--data", "absent.csv"),
    ("features", *MOLM, "--data", "absent.csv"), ("annotate", *MOLM, "--data", "absent.csv"),
    ("circuit", *MOLM, "--data", "absent.csv", "--label", "y"), ("report", "absent"),
    ("train", "absent", "--architecture", "sae", "--data", "absent.csv", "--out", "x"),
    ("harvest", "absent", "--data", "absent.csv", "--tokens", "9", "--out", "x"),
    ("convert", "absent", "--to", "saelens", "--out", "x"), ("subjects", "absent"),
)  # fmt: skip
START = "from isotrace.cli import main; main()"


def seconds(code: str, *arguments: str) -> float:
    """CPU seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    started = time.perf_counter()
    rows = [("import torch", "import torch", ()), ("import isotrace", "import isotrace", ())]
    rows += [(" ".join(arguments), START, arguments) for arguments in COMMANDS]
    for name, code, arguments in rows:
        print(f"{min(seconds(code, *arguments) for _ in range(3)):6.2f}  {name}")
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()

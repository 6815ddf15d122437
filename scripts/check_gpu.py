"""Does every verb give on a GPU what it gives on the CPU, and how long does either take?

    python scripts/check_gpu.py [--device cuda] [--sequences 64]

Runs on the bundled subject and dictionary, prints one row per verb, and fails where the largest difference is beyond
rounding. `pytest -m gpu` compares more, on tiny subjects.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl

import isotrace
from isotrace.dictionaries.features import Features
from isotrace.interventions import Intervention, Select, Set

TOLERANCE = 1e-3  # relative to the largest value: float32, other orders of summation
Numbers = list[float] | np.ndarray


def verbs(table: pl.DataFrame, work: Path) -> dict[str, Callable[..., Numbers]]:
    """Verb → numbers of a run on (subject, dictionary)."""
    texts = table["smiles"]

    def features(subject, dictionary):
        return isotrace.Featuriser(subject, dictionary, pool="mean", sparse_output=False).fit_transform(texts).ravel()

    def intervene(subject, dictionary):
        plan = [Intervention(Features(dictionary), Set(1.0), Select(layers=(2,), index=(17,)))]
        return isotrace.intervene(subject, texts, plan).to_frame()["change"].to_numpy()

    def evaluate(subject, dictionary):
        found = isotrace.evaluate(subject, dictionary, texts, bootstrap=20).to_dict()
        return [one["free_running"]["cross_entropy"] for one in (*found["dictionaries"], *found["controls"])]

    def trace(subject, dictionary):
        found = isotrace.trace(subject, dictionary, "CC(=O)Oc1ccccc1C(=O)O", "probe:bbb", spellings=0).to_dict()
        return [found["circuit"][name] for name in ("full", "empty", "value", "removed")]

    def circuit(subject, dictionary):
        own = {"label": "measured_log_solubility_mol_per_l", "sizes": (92,), "controls": 2, "bootstrap": 20, "drawn": 1}
        found = isotrace.circuit(subject, dictionary, table, limit=32, **own).to_dict()
        return [row["free_running"]["value"] for row in found["sweep"]]

    def train(subject, dictionary):
        out = Path(tempfile.mkdtemp(dir=work)) / "trained"
        isotrace.train(subject, texts, architecture="transcoder", out=out, tokens=4_096, features=256, k=16)
        return isotrace.load_dictionary(out).W_enc[0].flatten().numpy()

    return {one.__name__: one for one in (features, intervene, evaluate, trace, circuit, train)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sequences", type=int, default=64)
    given = parser.parse_args()
    table = pl.read_csv(str(files("isotrace") / "assets" / "tasks" / "esol.csv.gz")).sample(given.sequences, seed=0)
    worst = 0.0
    print(f"{'verb':10} {'cpu s':>8} {given.device + ' s':>8} {'largest relative difference':>28}")
    with tempfile.TemporaryDirectory() as work:
        for name, run in verbs(table, Path(work)).items():
            found, seconds = [], []
            for device in ("cpu", given.device):
                subject = isotrace.load_subject("bundled:molm", device=device)
                dictionary = isotrace.load_dictionary("bundled:molm-clt", subject)
                started = time.perf_counter()
                try:
                    found.append(np.asarray(run(subject, dictionary), dtype=float))
                except Exception as error:  # the verbs behind it are asked all the same
                    print(f"{name:10} on {device}: {type(error).__name__}: {error}", flush=True)
                    found.append(np.asarray([np.nan]))
                seconds.append(time.perf_counter() - started)
            difference = float(np.abs(found[0] - found[-1]).max() / np.abs(found[0]).max())
            worst = max(worst, difference) if difference == difference else float("nan")
            print(f"{name:10} {seconds[0]:8.2f} {seconds[-1]:8.2f} {difference:28.2e}", flush=True)
    return int(not worst < TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

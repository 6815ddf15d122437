"""Does a GPU give what the CPU gives, and how long does either take?

    python scripts/check_gpu.py [--device cuda] [--sequences 64] [--seconds 330] [--json FILE]

First numbers: the kernels, forward and backward, 50 training steps, and every verb on the bundled subject and
dictionary, a row each; it fails where the largest difference is beyond rounding. Then speed: `benchmarks/train_step.py`
at A to E beside the peers that are installed, as far as the seconds go. All is written as one JSON. `pytest -m gpu`
compares more, on tiny subjects.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file

import isotrace
from isotrace.dictionaries.features import Features
from isotrace.interventions import Intervention, Select, Set
from isotrace.kernels import sparse_decode, sparse_encode

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "train_step.py"
SHAPES = ("C", "A", "E", "D", "B")  # the first ones first, where time is short
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

    def harvest(subject, dictionary):
        out = Path(tempfile.mkdtemp(dir=work)) / "store"
        isotrace.harvest(subject, texts, tokens=1_000, out=out)
        shards = [load_file(shard) for shard in sorted(out.rglob("*.safetensors"))]
        return np.concatenate([shard[name].ravel() for shard in shards for name in sorted(shard)])

    def annotate(subject, dictionary):
        few = {"permutations": 20, "bootstrap": 20, "min_positive": 5, "spellings": 0, "effects": False}
        found = isotrace.annotate(subject, dictionary, texts, **few, sources=("dictionary",))
        return found.tables["features"].sort("layer", "feature")["density"].to_numpy()

    def train(subject, dictionary):
        out = Path(tempfile.mkdtemp(dir=work)) / "trained"
        size = {"tokens": 50 * 2_048, "features": 256, "k": 16}
        isotrace.train(subject, texts, architecture="transcoder", out=out, **size)
        return isotrace.load_dictionary(out).W_enc[0].flatten().numpy()

    return {one.__name__: one for one in (features, intervene, evaluate, trace, circuit, harvest, annotate, train)}


def kernels(device: str) -> Numbers:
    """Values, reconstruction and all gradients of a cross-layer step."""
    generator = torch.Generator().manual_seed(0)
    x, layers, d, n_features, k = torch.randn(3, 512, 96, generator=generator), 3, 96, 1024, 16
    weights = [torch.randn(d, n_features, generator=generator) / 10 for _ in range(layers)]
    decoders = [torch.randn(n_features, (layers - s) * d, generator=generator) / 10 for s in range(layers)]
    leaves = [one.to(device).requires_grad_() for one in (*weights, *decoders)]
    bias = torch.zeros(n_features, device=device)
    encoded = [
        sparse_encode(rows, W, bias, k, dtype=torch.float32)
        for rows, W in zip(x.to(device), leaves[:layers], strict=True)
    ]
    values, indices = [e[0] for e in encoded], [e[1] for e in encoded]
    out = sparse_decode(values, indices, leaves[layers:], d, layers)
    out.square().mean().backward()
    found = [out, *(v.sort(-1).values for v in values), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    # each on its own scale, or the largest would hide the others
    return torch.cat([(t / t.abs().max()).flatten().cpu() for t in found]).detach().numpy()


def speed(device: str, deadline: float) -> list[dict]:
    """Rows of `train_step.py` until the deadline."""
    rows = []
    for shape in SHAPES:
        left = deadline - time.monotonic()
        if left < 20:
            rows.append({"shape": shape, "left_out": "no time left"})
            continue
        asked = ["--shape", shape, "--device", device, "--threads", str(torch.get_num_threads()), "--json"]
        try:
            how = {"capture_output": True, "text": True, "timeout": left, "check": False}
            made = subprocess.run([sys.executable, "-W", "ignore", str(BENCHMARK), *asked], **how)
        except subprocess.TimeoutExpired:
            rows.append({"shape": shape, "left_out": f"not done after {left:.0f} s"})
            continue
        said = made.stdout.strip().splitlines()
        rows.append(
            json.loads(said[-1]) if made.returncode == 0 and said else {"shape": shape, "failed": made.stderr[-2_000:]}
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=330, help="begin no benchmark that would end later")
    parser.add_argument("--json", type=Path, help="a file for all that is found")
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    cuda = torch.device(given.device).type == "cuda"
    result: dict = {"device": torch.cuda.get_device_name() if cuda else given.device, "torch": torch.__version__}
    table = pl.read_csv(str(files("isotrace") / "assets" / "tasks" / "esol.csv.gz")).sample(given.sequences, seed=0)
    worst = float(np.abs(np.asarray(kernels("cpu")) - kernels(given.device)).max())
    result |= {"kernels": worst, "verbs": []}
    print(
        f"kernels: largest difference {worst:.2e}\n{'verb':10} {'cpu s':>8} {given.device + ' s':>8} {'difference':>12}"
    )
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
            same = found[0].shape == found[-1].shape
            difference = float(np.abs(found[0] - found[-1]).max() / np.abs(found[0]).max()) if same else float("nan")
            worst = max(worst, difference) if difference == difference else float("nan")
            result["verbs"].append({"verb": name, "seconds": seconds, "difference": difference})
            print(f"{name:10} {seconds[0]:8.2f} {seconds[-1]:8.2f} {difference:12.2e}", flush=True)
    result["steps"] = speed(given.device, deadline)
    print(json.dumps(result, default=float) if given.json is None else given.json)
    if given.json is not None:
        given.json.write_text(json.dumps(result, default=float, indent=1) + "\n")
    return int(not worst < TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

"""What rounding to bytes does to the encoder's products of the bundled dictionary, on activations of its subject.

    python benchmarks/candidates.py [--tokens 4096] [--json]

Per layer: the deviation that is expected of what rounding changes, as a share of an entry's own; the root mean square
and the largest of the changes in units of it; candidates a token; features of the float64 selection that are missed.
"""

import argparse
import json

import numpy as np
import torch

from isotrace import load_dictionary, load_subject
from isotrace.kernels import cpu, sparse_encode
from train_step import mlp_rows


def measure(x, W, b, k: int) -> dict[str, float]:
    """x `[N, d]`, W `[d, F]`, b `[F]`."""
    rows, centre = W.T.contiguous(), x.mean(0)
    mine, theirs = cpu.Quantised.of(x - centre), cpu.Quantised.of(rows)
    given = (mine.integers.double() * mine.scales[:, None]) @ (theirs.integers.double() * theirs.scales[:, None]).T
    change = given - (x - centre).double() @ W.double()
    expected = torch.hypot(mine.errors[:, None] * theirs.norms, mine.norms[:, None] * theirs.errors) / x.shape[1] ** 0.5
    own = mine.norms.mean() * theirs.norms.square().mean().sqrt() / x.shape[1] ** 0.5
    n_found = []
    plain = cpu.jit_select.select_quantised
    cpu.jit_select.select_quantised = lambda *parts: n_found.append(count(parts, k)) or plain(*parts)
    values, indices, _ = sparse_encode(x, W, b, k, dtype=torch.bfloat16, backend="numba")
    cpu.jit_select.select_quantised = plain
    exact = (x.double() @ W.double() + b.double()).topk(k)
    kept = ((indices[:, :, None] == exact.indices[:, None]) & (values[:, :, None] > 0)).any(1)
    units = change / expected
    return {
        "share": (expected.mean() / own).item(),
        "rms": units.square().mean().sqrt().item(),
        "largest": units.abs().max().item(),
        "candidates": float(np.mean(n_found)) if n_found else float("nan"),
        "missed": int((~kept & (exact.values > 0)).sum()),
    }


def count(parts, k: int) -> float:
    """Mean candidates of a chunk, without the limit of 4k."""
    product, x_scale, W_scale, bias, slack, *_, start, stop, shift = parts
    numbers = product[start - shift : stop - shift] * W_scale * x_scale[start:stop, None] + bias
    lowest = np.partition(numbers, -k, axis=1)[:, -k] - slack[start:stop]
    return float((numbers >= lowest[:, None]).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dictionary = load_dictionary("bundled:molm-clt", load_subject("bundled:molm"))
    torch.manual_seed(0)
    weights = zip(mlp_rows(args.tokens)[0], dictionary.W_enc, dictionary.b_enc, strict=True)
    found = [measure(rows.contiguous(), W.detach(), b.detach(), dictionary.config.k) for rows, W, b in weights]
    print(json.dumps(found) if args.json else "\n".join(str(row) for row in found))


if __name__ == "__main__":
    main()

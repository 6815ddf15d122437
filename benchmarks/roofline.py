"""Where a training step of ours spends its time, part by part, beside the least that this machine's memory allows.

    python benchmarks/roofline.py --shape A [--tokens 2048] [--threads 2] [--rounds 7] [--json]

The least of a part is measured on the same arrays, in turn with the part itself:

    product    the same product of bytes alone
    select     its integers read once, and as many encoder rows as there are candidates
    decode     N · k decoder rows read once, outputs written
    loss       outputs and targets read, the gradient written
    backward   N · k rows of the gradient and of the input read once, decoders read once, all gradients written
    norm       all gradients read
    Adam       PyTorch's own fused pass

Rows are read by a loop that only adds them up (`floor.read_rows`), in the order in which the step asks for them; what
is read or written in one go is copied by PyTorch. Their sum is what a step could come down to if every part did nothing
but wait for memory; the dense step divided by it is the largest ratio to be had.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import TypeVar

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from torch import nn

from floor import read_rows
from isotrace.kernels import cpu, sparse_decode, sparse_encode
from peers import DenseCLT, Ours, fve_loss
from train_step import SHAPES

T = TypeVar("T")
PARTS = ("product", "select", "decode", "loss", "backward", "norm", "Adam")
CANDIDATES = 2  # times k: encoder rows that are computed again, see benchmarks/candidates.py


def timed(function: Callable[..., T], *args) -> tuple[float, T]:
    started = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - started, result


def products(x, W_enc) -> float:
    """Seconds of the products of bytes of all layers."""
    integers = [
        (cpu.Quantised.of(a).integers, cpu.Quantised.of(W.detach().T).integers.T) for a, W in zip(x, W_enc, strict=True)
    ]
    out = torch.empty(len(x[0]), W_enc[0].shape[1], dtype=torch.int32)
    return timed(lambda: [torch.ops.aten._int_mm.out(a, b, out=out) for a, b in integers])[0]


def step(ours: Ours, x, y) -> dict[str, float]:
    """Seconds of the parts; `product` is measured by itself, and `select` is what else the encoder takes."""
    spent, shape = {"product": products(x, ours.W_enc)}, ours.shape
    layers = zip(x, ours.W_enc, ours.b_enc, strict=True)
    whole, encoded = timed(lambda: [sparse_encode(a, W, b, shape.k, **ours.options) for a, W, b in layers])
    spent["select"] = whole - spent["product"]
    values, indices = [e[0] for e in encoded], [e[1] for e in encoded]
    decode = lambda: sparse_decode(values, indices, ours.W_dec, shape.d, shape.window) + ours.b_dec  # noqa: E731
    spent["decode"], made = timed(decode)
    # backward of the loss alone belongs to the loss
    leaf = made.detach().requires_grad_()
    spent["loss"] = timed(lambda: fve_loss(y, leaf).backward())[0]
    ours.optimizer.zero_grad(set_to_none=True)
    spent["backward"] = timed(lambda: made.backward(leaf.grad))[0]
    grads = [p.grad for p in ours.parameters if p.grad is not None]
    spent["norm"], norm = timed(nn.utils.get_total_norm, grads)
    nn.utils.clip_grads_with_norm_(ours.parameters, 1.0, norm)
    spent["Adam"] = timed(ours.optimizer.step)[0]
    return spent


class Least:
    """The least of every part, on arrays of the same sizes."""

    def __init__(self, ours: Ours, tokens: int) -> None:
        self.ours, self.tokens, shape = ours, tokens, ours.shape
        draw = np.random.default_rng(0)
        self.features = draw.integers(0, shape.n_features, (tokens, shape.k))
        self.wide = draw.integers(0, shape.n_features, (tokens, CANDIDATES * shape.k))
        # gradients are read feature by feature, so rows of the tokens come in no order
        self.rows = draw.integers(0, tokens, (tokens, shape.k))
        self.gradient = np.zeros((tokens, shape.n_layers * shape.d), np.float32)
        self.integers = torch.zeros(tokens, shape.n_features)  # as many bytes
        self.outputs = torch.zeros(2, shape.n_layers, tokens, shape.d)

    def read(self, places: np.ndarray, rows: np.ndarray, width: int) -> None:
        cpu.parallel(lambda a, b: read_rows(places, rows, width, a, b), cpu.even(self.tokens))

    def __call__(self, x) -> dict[str, float]:
        ours, shape = self.ours, self.ours.shape
        encoders = [W.detach().T.numpy() for W in ours.W_enc]
        decoders = [W.detach().numpy() for W in ours.W_dec]
        spent = {"product": products(x, ours.W_enc)}
        parameters = [p for p in ours.parameters if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]

        def select() -> None:
            for rows in encoders:
                self.integers.sum()
                self.read(self.wide, rows, shape.d)

        def decode() -> None:
            for rows in decoders:
                self.read(self.features, rows, rows.shape[1])
            self.outputs[0].fill_(0)

        def backward() -> None:
            for rows in decoders:
                self.read(self.rows, self.gradient, rows.shape[1])
                self.read(self.rows, self.gradient, shape.d)
            for grad, parameter in zip(grads, parameters, strict=True):
                grad.copy_(parameter.detach())  # the decoders' are read once, all are written once

        for name, function in (("select", select), ("decode", decode), ("backward", backward)):
            spent[name] = timed(function)[0]
        spent["loss"] = timed(lambda: torch.sub(*self.outputs, out=self.outputs[0]))[0]
        spent["norm"] = timed(lambda: [grad.sum() for grad in grads])[0]
        spent["Adam"] = timed(ours.optimizer.step)[0]
        return spent


def measure(name: str, tokens: int, rounds: int) -> dict:
    torch.manual_seed(0)
    shape = SHAPES[name]
    x, y = torch.randn(2, shape.n_layers, tokens, shape.d)
    ours, dense, found = Ours(shape, torch.bfloat16), DenseCLT(shape, torch.bfloat16), []
    least = Least(ours, tokens)
    for _ in range(rounds + 2):
        own = step(ours, x, y)
        bound = least(x)
        found.append([[own[p] for p in PARTS], [bound[p] for p in PARTS], [timed(dense.step, x, y)[0]] * len(PARTS)])
    times = 1e3 * np.asarray(found[2:])  # [rounds, (own, least, dense), parts]
    own, bound, other = times[:, 0], times[:, 1], times[:, 2, 0]
    parts = {p: {"ms": np.median(own[:, i]), "least_ms": np.median(bound[:, i])} for i, p in enumerate(PARTS)}
    share, ratio = bound.sum(1) / own.sum(1), other / bound.sum(1)
    span = lambda values: {"median": np.median(values), "min": values.min(), "max": values.max()}  # noqa: E731
    return {"shape": name, "tokens": tokens, "parts": parts, "ms": np.median(own.sum(1)), "least_ms": np.median(
        bound.sum(1)), "least_over_ours": span(share), "dense_over_least": span(ratio)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("A", "B", "C", "D"), default="A")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args.shape, args.tokens, args.rounds)
    if args.json:
        print(json.dumps(result, default=float))
        return
    print(f"{args.shape}, {args.tokens} tokens, {args.threads} threads, ms{'ours':>14}{'least':>10}")
    for name, row in result["parts"].items():
        print(f"{name:>30}{row['ms']:>14.1f}{row['least_ms']:>10.1f}")
    print(f"{'all':>30}{result['ms']:>14.1f}{result['least_ms']:>10.1f}")
    for key in ("least_over_ours", "dense_over_least"):
        row = result[key]
        print(f"{key.replace('_', ' '):>30}{row['median']:>14.2f} ({row['min']:.2f}–{row['max']:.2f})")


if __name__ == "__main__":
    main()

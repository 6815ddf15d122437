"""What a training step cannot do without, timed piece by piece: the floor under `train_step.py`.

encode   the matrix product of every layer's encoder, in the benchmark's dtype
Adam     one pass of PyTorch's fused Adam over all parameters
gathers  N · k decoder rows read once (forward); as many rows of the output's gradient read once (backward: both
         gradients need them, and can share the read); N · k input rows read once (gradient of the encoder)

Not counted: top-k, recomputing the chosen values, writing gradients, the norm of the gradient, the loss.
"""

import time

import numpy as np
import torch
from numba import njit

from isotrace.kernels.cpu import even, parallel


@njit(nogil=True, fastmath=True, cache=True)
def read_rows(indices, rows, width, start, stop):
    total = rows.dtype.type(0)
    for n in range(start, stop):
        for j in range(indices.shape[1]):
            row = rows[indices[n, j], :width]
            for i in range(width):
                total += row[i]
    return total


class Floor:
    """Buffers of a shape; call it for (seconds of encode, of Adam, of gathers)."""

    def __init__(self, shape, tokens: int, dtype: torch.dtype) -> None:
        self.shape, self.tokens = shape, tokens
        layers = range(shape.n_layers)
        self.x = [torch.randn(tokens, shape.d).to(dtype) for _ in layers]
        self.W = [torch.randn(shape.n_features, shape.d).to(dtype) for _ in layers]
        self.decoders = [torch.zeros(shape.n_features, shape.targets(s) * shape.d) for s in layers]
        encoders = [torch.zeros(shape.n_features, shape.d) for _ in layers]
        self.parameters = [p.requires_grad_() for p in (*encoders, *self.decoders)]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.adam = torch.optim.Adam(self.parameters, fused=True)
        self.features = np.random.default_rng(0).integers(0, shape.n_features, (tokens, shape.k))
        self.rows = np.random.default_rng(1).integers(0, tokens, (tokens, shape.k))
        self.gradient = np.zeros((tokens, shape.n_layers * shape.d), np.float32)

    def gathers(self, start: int, stop: int) -> None:
        for decoder in self.decoders:
            weight = decoder.detach().numpy()
            read_rows(self.features, weight, weight.shape[1], start, stop)
            read_rows(self.rows, self.gradient, weight.shape[1], start, stop)
            read_rows(self.rows, self.gradient, self.shape.d, start, stop)

    def __call__(self, clock=time.perf_counter) -> tuple[float, float, float]:
        marks = [clock()]
        for x, weight in zip(self.x, self.W, strict=True):
            torch.nn.functional.linear(x, weight)
        marks.append(clock())
        self.adam.step()
        marks.append(clock())
        parallel(self.gathers, even(self.tokens))
        marks.append(clock())
        return marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]

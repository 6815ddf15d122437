"""Sparse kernels of dictionaries: encode, decode and top-k, with a backend chosen by `resolve`."""

from isotrace.kernels.backend import Backend, MissingExtraError, resolve
from isotrace.kernels.ops import encode_at, sparse_decode, sparse_encode, sparse_rows
from isotrace.kernels.topk import topk

__all__ = [
    "Backend",
    "MissingExtraError",
    "encode_at",
    "resolve",
    "sparse_decode",
    "sparse_encode",
    "sparse_rows",
    "topk",
]

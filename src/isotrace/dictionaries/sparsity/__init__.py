"""Sparsity rules: which features of a token are active. One file each; importing this package registers them."""

from isotrace.dictionaries.sparsity import batchtopk, gated, jumprelu, relu, topk

__all__ = ["batchtopk", "gated", "jumprelu", "relu", "topk"]

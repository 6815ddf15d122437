"""Hookpoint names: `layers.N.NAME` here, TransformerLens's `blocks.N.hook_…` in SAELens and circuit-tracer, real
module paths in sparsify. Only names whose meaning their tool documents are translated."""

import re
from collections.abc import Sequence

TRANSFORMER_LENS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
}
NAMES = {theirs: ours for ours, theirs in TRANSFORMER_LENS.items()}


def to_lens(site: str) -> str:
    """`layers.{}.mlp_out` → `hook_mlp_out`; a site TransformerLens has no name for stays as it is."""
    return TRANSFORMER_LENS.get(site.removeprefix("layers.{}."), site)


def from_lens(hook: object) -> str | None:
    """`hook_mlp_out` → `layers.{}.mlp_out`; None for a name not known here."""
    if isinstance(hook, str) and hook in NAMES:
        return f"layers.{{}}.{NAMES[hook]}"
    return hook if isinstance(hook, str) and hook.startswith("layers.{}.") else None


def split(hook: object) -> tuple[int | None, str | None]:
    """(layer, site) of `blocks.3.hook_mlp_out` or `layers.3.mlp_out`; (None, None) for another name."""
    if not isinstance(hook, str):
        return None, None
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", hook, re.ASCII):
        return int(match[1]), from_lens(match[2])
    if match := re.fullmatch(r"layers\.(\d+)\.(\w+)", hook, re.ASCII):
        return int(match[1]), f"layers.{{}}.{match[2]}"
    return None, None


def agree(sites: Sequence[str | None]) -> str | None:
    """The one site all layers share; None if one is unknown or they differ."""
    return sites[0] if len(set(sites)) == 1 else None


def numbers(layers: Sequence[int | None]) -> list[int] | None:
    """The layers, if all are known."""
    known = [layer for layer in layers if layer is not None]
    return known if len(known) == len(layers) else None

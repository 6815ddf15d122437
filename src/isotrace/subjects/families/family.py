"""What an entry of the registry says about an architecture, and the registry itself."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from isotrace.base.errors import SubjectError
from isotrace.base.registry import Registry
from isotrace.subjects.heads.pooled import Latent

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast
    from transformers.modeling_utils import PreTrainedModel

Side = Literal["input", "output"]
Objective = Literal["masked", "causal", "denoising", "translating"]
"""What a head predicts, see `Family`; `translating`: the tokens of another sequence than the encoder reads."""


@dataclass(frozen=True)
class NormKind:
    """x ↦ (x − mean) / σ · weight + bias. `centred`: the mean is taken off; σ² is the mean square of what remains
    plus the module's attribute `eps`. A module without bias adds none."""

    centred: bool
    eps: str


LAYER_NORM = NormKind(centred=True, eps="eps")
RMS_NORM = NormKind(centred=False, eps="variance_epsilon")


@dataclass(frozen=True)
class Stack:
    """Blocks that one residual stream runs through. Paths other than `layers` are relative to a block.

    `attention`: the modules whose patterns are frozen, see `Family.pattern`. `attn_out`: the linear module that joins
    what the heads of self-attention give, side by side in its input (`head_out`), to what is added to the stream.
    `mlp_in`: the module whose *input* the MLP reads, its first linear map or, as a gated MLP has two of those, the
    whole MLP. `mlp_out`: its last linear map, whose input is the hookpoint `neuron` and whose output is `mlp_out`;
    between the two there is nothing but the MLP. `norms`: every norm the stream or what is read from it passes; an
    Identity in place of one is skipped. `gelu_after`: the module that computes `mlp_in` and then the exact GELU, where
    the architecture writes that GELU out in several operations.
    """

    layers: str
    attention: tuple[str, ...]
    attn_out: str
    mlp_in: str
    mlp_out: str
    norms: tuple[str, ...]
    gelu_after: str | None = None

    @property
    def hookpoints(self) -> dict[str, tuple[str, Side]]:
        """Kind of hookpoint → (path relative to the block, side), in the order in which one block computes them."""
        return {
            "resid_pre": ("", "input"),
            "head_out": (self.attn_out, "input"),
            "attn_out": (self.attn_out, "output"),
            "mlp_in": (self.mlp_in, "input"),
            "neuron": (self.mlp_out, "input"),
            "mlp_out": (self.mlp_out, "output"),
            "resid_post": ("", "output"),
        }

    def path(self, index: int, inner: str) -> str:
        return f"{self.layers}.{index}.{inner}".rstrip(".")


@dataclass(frozen=True)
class HeadPaths:
    """The head that a fine-tuned model has instead: pool → dense → function → norm → `classifier`, module paths as in
    `Family`. Without `dense` it is linear, without `norm` the function's result goes straight to `classifier`.

    `pool`: which final hidden states of a sequence are read, the first token's (`cls`), those of all tokens (`mean`),
    that of the last token which is no padding to the config (`last`), or, for a head of tokens, that of the token
    asked about (`token`). `function`: transformers' name of it. Either may be `config.NAME`, the setting that says it.
    """

    classifier: str
    pool: str
    dense: str | None = None
    function: str | None = None
    norm: str | None = None


@dataclass(frozen=True)
class Native:
    """Classes of isotrace's own for an architecture that transformers lacks, so that no code of a checkpoint runs.

    `headless`: the names in `architectures` that are loaded as `base`, any other as `language_model`.
    `tokenizer(folder)` loads the tokenizer where transformers has none for the architecture.
    """

    config: "type[PreTrainedConfig]"
    base: "type[PreTrainedModel]"
    language_model: "type[PreTrainedModel]"
    headless: tuple[str, ...]
    tokenizer: "Callable[[Path], PreTrainedTokenizerFast] | None" = None


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture in its language model, as transformers names them.

    `base` is the attribute that holds the model without its head (empty: the head sits beside the stacks); where a
    checkpoint has no head, it falls away from every path. `objective`: what the head predicts, a masked token
    (`masked`), the next token (`causal`), or, in an encoder–decoder that reads the same tokens in its encoder and,
    one place to the right, in its decoder, the token of its place (`denoising`). An encoder–decoder whose config says
    `translating` writes another sequence than it reads: its decoder reads what it has written, each with the token
    that it starts from, and predicts the next (`objective_of`).
    `words`, `positions`: the modules whose outputs are the embeddings, of the encoder first; a position embedding
    that a model lacks, since it is rotary or relative, is skipped. `stacks`: the encoder's blocks, then the decoder's.
    `norms`: those outside the blocks and the head; one that a model lacks is skipped.
    `mask`: the token it was trained to fill, where its tokenizers name no mask token.
    `pattern`: `function` if attention goes through transformers' registry of attention functions; `dropout` if
    `Stack.attention` names the modules, mostly a dropout, that are given the pattern before values are summed by it.
    The head is dense → pointwise function → LayerNorm → linear; without `head_dense` and `head_norm` it is linear.
    `head` is what reads the final hidden state, `head_decoder` the last linear map, `logits(model, final)` the whole
    head where that is more than calling `head`.
    `sequence`, `token`: the heads of models fine-tuned to classify or rate sequences, or tokens; None where a family
    says nothing of them. `latent`: one vector that the model makes of all tokens, see `Latent`.
    `prepare(model)` runs once after loading, `restore(model)` undoes it before saving, `refuse(config, has_head)` says
    why a model cannot be handled exactly.
    `native`: classes of isotrace's own, where transformers has none.
    """

    model_type: str
    base: str
    objective: Literal["masked", "causal", "denoising"]
    words: tuple[str, ...]
    positions: tuple[str, ...]
    stacks: tuple[Stack, ...]
    norms: tuple[str, ...]
    head: str
    head_decoder: str
    head_dense: str | None = None
    head_norm: str | None = None
    logits: Callable[[Any, Tensor], Tensor] | None = None
    norm: NormKind = LAYER_NORM
    mask: str | None = None
    pattern: Literal["function", "dropout"] = "function"
    sequence: HeadPaths | None = None
    token: HeadPaths | None = None
    latent: Latent | None = None
    optional_weights: tuple[str, ...] = ()
    prepare: Callable[[Any], None] | None = None
    restore: Callable[[Any], None] | None = None
    refuse: Callable[[Any, bool], str | None] | None = None
    native: Native | None = None

    @property
    def hookpoints(self) -> dict[str, tuple[str, Side]]:
        """Kinds of hookpoint, see `Stack.hookpoints`; every stack has the same."""
        return self.stacks[0].hookpoints

    def blocks(self, *n_layers: int) -> Iterator[tuple[Stack, int]]:
        """(stack, index in it) of every layer; `n_layers` has one number per stack."""
        for stack, n in zip(self.stacks, n_layers, strict=True):
            yield from ((stack, index) for index in range(n))

    def hookpoint(self, name: str, *n_layers: int) -> tuple[str, Side]:
        """(module path, side) of `layers.N.KIND`. Raises SubjectError for another layer or kind."""
        blocks = list(self.blocks(*n_layers))
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)", name, re.ASCII)
        if match is None or int(match[1]) >= len(blocks) or match[2] not in self.hookpoints:
            raise SubjectError(
                f"the subject has no hookpoint {name!r}: give layers.N.KIND, N below {len(blocks)}, "
                f"KIND one of {', '.join(self.hookpoints)}."
            )
        stack, index = blocks[int(match[1])]
        path, side = stack.hookpoints[match[2]]
        return stack.path(index, path), side

    @property
    def mlp_in(self) -> str:
        """Path with the layer left open, of a family with one stack."""
        (stack,) = self.stacks
        return f"{stack.layers}.{{}}.{stack.mlp_in}"

    @property
    def mlp_out(self) -> str:
        (stack,) = self.stacks
        return f"{stack.layers}.{{}}.{stack.mlp_out}"


_NAMES = (
    "albert", "bart", "bert", "esm", "esmc", "gpt2", "llama", "modernbert", "molformer", "progen", "roberta", "t5",
)  # fmt: skip
_SHIPPED = {"deberta-v2": "deberta_v2:DEBERTA_V2", "materials.smi-ted": "smited:SMITED"} | {
    name: f"{name}:{name.upper()}" for name in _NAMES
}
FAMILIES: Registry[Family] = Registry(
    "family entry for model type",
    "isotrace.families",
    {name: f"isotrace.subjects.families.{value}" for name, value in sorted(_SHIPPED.items())},
    SubjectError,
    ", or add one, see docs/bring-your-own-model.md",
)
family_of = FAMILIES.__getitem__


def objective_of(config: Any, family: Family) -> Objective:
    """That of the family, or `translating` where the config of an encoder–decoder says so."""
    translates = family.objective == "denoising" and getattr(config, "translating", False)
    return "translating" if translates else family.objective


def register(family: Family) -> Family:
    """Raises InputError where another family has its model type."""
    return FAMILIES.register(family.model_type, family)

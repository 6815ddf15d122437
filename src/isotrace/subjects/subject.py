"""The subject: a published masked language model, its hookpoints, and running it with interventions."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import logging as transformers_logging

from isotrace.errors import InputError, SubjectError
from isotrace.subjects.families import Family, Side, family_of
from isotrace.subjects.source import SubjectFiles, resolve

AttentionFunction = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor | None]]
ATTENTION = "isotrace"


def softmax_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """(output `[batch, query, heads, d_head]`, pattern `[batch, heads, query, key]`)."""
    scores = query @ key.transpose(2, 3) * scaling
    pattern = (scores if mask is None else scores + mask).softmax(-1)
    return (pattern @ value).transpose(1, 2), pattern


def _attention(module: nn.Module, query, key, value, attention_mask, scaling=None, **kwargs):
    function: AttentionFunction = getattr(module, "isotrace_attention", softmax_attention)
    return function(module, query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, eager_mask)


@dataclass(frozen=True)
class Batch:
    """Tokenised sequences: `ids [batch, tokens]` int64, `mask [batch, tokens]` bool (True = real token),
    `offsets[i]` character span of every token of sequence i."""

    ids: Tensor
    mask: Tensor
    sequences: tuple[str, ...]
    offsets: tuple[tuple[tuple[int, int], ...], ...]

    def with_ids(self, ids: Tensor) -> "Batch":
        return Batch(ids, self.mask, self.sequences, self.offsets)


@dataclass(frozen=True)
class Output:
    """`final [batch, tokens, d_model]` is the hidden state the head and the probes read; `logits` is None
    unless asked for; `captured` maps hookpoint to `[batch, tokens, d]`."""

    final: Tensor
    logits: Tensor | None
    captured: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def forwards_replaced(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within the context each module computes the given function instead of its own forward."""
    try:
        for module, function in replacements.items():
            module.forward = function
        yield
    finally:
        for module in replacements:
            module.__dict__.pop("forward", None)


@contextmanager
def attention_replaced(modules: Sequence[nn.Module], function: AttentionFunction) -> Iterator[None]:
    """Within the context the attention modules call `function` once queries, keys and values are made."""
    try:
        for module in modules:
            object.__setattr__(module, "isotrace_attention", function)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("isotrace_attention", None)


class Subject:
    """A masked language model under study. Weights are float32, in eval mode and never trained here."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, files: SubjectFiles) -> None:
        self.model, self.tokenizer, self.files = model.eval().requires_grad_(False), tokenizer, files
        self.family: Family = family_of(model.config.model_type)
        self.mask_id, self.pad_id = (cast(int, i) for i in (tokenizer.mask_token_id, tokenizer.pad_token_id))
        self.n_layers: int = model.config.num_hidden_layers
        self.d_model: int = model.config.hidden_size
        self.max_tokens = min(tokenizer.model_max_length, self._positions())
        special = torch.zeros(len(tokenizer), dtype=torch.bool)
        special[tokenizer.all_special_ids] = True
        self.is_special = special

    @property
    def source(self) -> str:
        return self.files.source

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def module(self, path: str, layer: int | None = None) -> nn.Module:
        return self.model.get_submodule(path if layer is None else path.format(layer))

    def hookpoint(self, name: str) -> tuple[nn.Module, Side]:
        """The module and the side of it (`input` or `output`) where the tensor `layers.N.KIND` flows.

        Raises SubjectError for a layer or kind this subject does not have.
        """
        path, side = self.family.hookpoint(name, self.n_layers)
        return self.module(path), side

    @property
    def position_embedding(self) -> nn.Embedding | None:
        """The learned position embedding, None for rotary models."""
        absolute = getattr(self.model.config, "position_embedding_type", "absolute") in ("absolute", None)
        path = self.family.position_embedding
        return cast(nn.Embedding, self.module(path)) if absolute and path else None

    def _positions(self) -> int:
        """How many tokens fit: where padding has a learned position, those of real tokens start behind it."""
        table = self.position_embedding
        first = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
        return self.model.config.max_position_embeddings - first

    @property
    def attentions(self) -> list[nn.Module]:
        return [self.module(self.family.attention, layer) for layer in range(self.n_layers)]

    @property
    def norms(self) -> dict[str, nn.LayerNorm]:
        """Every norm between embedding and final hidden state, by module path."""
        paths = [p.format(layer) for layer in range(self.n_layers) for p in self.family.layer_norms]
        named = dict(self.model.named_modules())
        return {p: cast(nn.LayerNorm, named[p]) for p in (*paths, *self.family.other_norms) if named.get(p) is not None}

    def tokenize(self, sequences: Sequence[str]) -> Batch:
        """Raises InputError for an empty, too long or unknown-token sequence; the message names the culprit."""
        rows = []
        for text in sequences:
            if not text.strip():
                raise InputError("the input is empty: give a SMILES or sequence.")
            row = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
            ids = row["input_ids"]
            if self.tokenizer.unk_token_id in ids:
                spans = [s for s, i in zip(row["offset_mapping"], ids, strict=True) if i == self.tokenizer.unk_token_id]
                unknown = ", ".join(sorted({repr(text[a:b]) for a, b in spans}))
                raise InputError(f"{text!r} holds tokens {self.source} does not know: {unknown}; rewrite or drop it.")
            if len(ids) > self.max_tokens:
                raise InputError(
                    f"{len(ids)} tokens, but {self.source} takes {self.max_tokens}: shorten {text[:40]!r}…."
                )
            rows.append((ids, tuple(map(tuple, row["offset_mapping"]))))
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.pad_id)
        for i, (row, _) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        mask = torch.arange(width)[None] < torch.tensor([len(r) for r, _ in rows])[:, None]
        return Batch(ids.to(self.device), mask.to(self.device), tuple(sequences), tuple(o for _, o in rows))

    def tokens(self, ids: Tensor) -> list[str]:
        return [*self.tokenizer.convert_ids_to_tokens(ids.tolist())]

    def token_id(self, token: str) -> int:
        """Raises InputError when the token is not in the vocabulary."""
        index = self.tokenizer.get_vocab().get(token)
        if index is None:
            raise InputError(f"{token!r} is no token of {self.source}: pick one of its vocabulary.")
        return index

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Final hidden state `[batch, tokens, d_model]` float32, differentiable inside replaced forwards."""
        base = self.module(self.family.base)
        return base(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def head(self, final: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` of final hidden states `[..., d_model]`."""
        return self.module(self.family.head)(final)

    @torch.no_grad()
    def run(
        self,
        batch: Batch,
        *,
        capture: Sequence[str] = (),
        edit_mlp_out: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        logits: bool = True,
    ) -> Output:
        """One free-running pass: attention and norms are recomputed on whatever the edits make of the stream.

        `capture` lists hookpoints (`layers.N.mlp_in` …, see `hookpoint`). `edit_mlp_out(layer, mlp_in, mlp_out)`
        returns the MLP output to use, both `[batch, tokens, d_model]`; what is captured is what flows on.
        """
        captured: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}

        def keep(store: dict[str, Tensor], name: str, value: Tensor) -> Tensor:
            store[name] = value
            return value

        edits: dict[str, Callable[[Tensor], Tensor]] = {}
        if edit_mlp_out is not None:
            for layer in range(self.n_layers):
                before, after = f"layers.{layer}.mlp_in", f"layers.{layer}.mlp_out"
                edits[before] = partial(keep, inputs, before)
                edits[after] = lambda out, n=layer, before=before: edit_mlp_out(n, inputs[before], out)
        # Hooks run in the order of their registration: captures last.
        with hookpoints_edited(self, edits), hookpoints_edited(self, {n: partial(keep, captured, n) for n in capture}):
            final = self.hidden(batch.ids, batch.mask)
        return Output(final, self.head(final) if logits else None, captured)


@contextmanager
def hookpoints_edited(subject: Subject, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the context the tensor at each named hookpoint, `[batch, tokens, d]`, is replaced by the
    function's result; all that follows is computed from it, differentiably. Raises SubjectError, see
    `Subject.hookpoint`. Editing `mlp_in` changes what the MLP reads, never the stream that passes it by."""
    found = [(*subject.hookpoint(name), function) for name, function in edits.items()]
    with ExitStack() as stack:
        for module, side, function in found:
            if side == "input":
                hook = lambda _, args, function=function: (function(args[0]), *args[1:])  # noqa: E731
                stack.callback(module.register_forward_pre_hook(hook).remove)
            else:
                hook = lambda _, args, output, function=function: function(output)  # noqa: E731
                stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def mlps_computed_by(subject: Subject, function: Callable[[int, Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Within the context `function(layer, mlp_in)` computes every MLP; the subject's own MLPs do not run.

    Yields the MLP inputs by layer, filled as the subject runs.
    """
    inputs: dict[int, Tensor] = {}
    replaced: dict[nn.Module, Callable[..., Any]] = {}
    for layer in range(subject.n_layers):

        def enter(x: Tensor, layer: int = layer) -> Tensor:
            inputs[layer] = x
            return x

        def leave(_: Tensor, layer: int = layer) -> Tensor:
            return function(layer, inputs[layer])

        replaced[subject.module(subject.family.mlp_in, layer)] = enter
        replaced[subject.module(subject.family.mlp_out, layer)] = leave
    with forwards_replaced(replaced):
        yield inputs


def load_subject(source: str | Path, *, domain: str | None = None, device: str = "cpu") -> Subject:
    """Load `bundled:molm`, `hf:org/name`, or a folder in the Hugging Face layout.

    `domain` says what a token stands for (`molecule`); bundled subjects say it themselves. Raises
    SubjectError for an unknown source, damaged weights, missing weights or a non-finite weight.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    files = resolve(str(source), domain)
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            files.folder, dtype=torch.float32, attn_implementation=ATTENTION, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(files.folder)
    except Exception as error:  # transformers and safetensors raise many kinds; all mean the same to a user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SubjectError(f"cannot load {source}: {reason}") from error
    optional = family_of(model.config.model_type).optional_weights
    missing = [k for k in info["missing_keys"] if not any(o in k for o in optional)]
    if missing:
        raise SubjectError(f"{source} lacks {len(missing)} weights, {missing[0]!r} first: save it again in full.")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SubjectError(f"weight {name!r} of {source} holds NaN or infinity: the file is damaged, get it again.")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SubjectError(f"the tokenizer of {source} keeps no offsets: a fast tokenizer is needed.")
    return Subject(model.to(device), tokenizer, files)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of the vocabulary, independent of how the tokenizer was saved."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()

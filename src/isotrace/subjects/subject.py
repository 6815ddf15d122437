"""The subject: a published language model, its hookpoints, and running it with interventions."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.progress import shortened
from isotrace.domains.domain import domain_of
from isotrace.subjects.dispatch import hookpoints_edited, install, is_edited
from isotrace.subjects.families import FAMILIES, Family, Objective, Side, family_of, objective_of
from isotrace.subjects.generation import Generated, Sampling, sampled
from isotrace.subjects.heads import pooled
from isotrace.subjects.heads.outputs import Kind, headless
from isotrace.subjects.heads.task_head import TaskHead
from isotrace.subjects.loading import load_model, settings_of
from isotrace.subjects.sources.source import SubjectFiles, resolve
from isotrace.subjects.tokenizers import Spans, fault, spaced, unspaced, wants_spaces, way_out


@dataclass(frozen=True)
class Batch:
    """Tokenised sequences: `ids [batch, tokens]` int64, `mask [batch, tokens]` bool (True = real token),
    `offsets[i]` character span of every token of sequence i. `sites [batch, tokens]` bool: the tokens that a generator
    may change or has written, where one is at work. `source`: what the encoder of an encoder–decoder reads, a row for
    each or one for all; None = the same tokens."""

    ids: Tensor
    mask: Tensor
    sequences: tuple[str, ...]
    offsets: tuple[tuple[tuple[int, int], ...], ...]
    sites: Tensor | None = None
    source: "Batch | None" = None

    def with_ids(self, ids: Tensor) -> "Batch":
        return replace(self, ids=ids)

    def to(self, device: torch.device) -> "Batch":
        sites, source = (x if x is None else x.to(device) for x in (self.sites, self.source))
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device), sites=sites, source=source)


@dataclass(frozen=True)
class Output:
    """`final [batch, tokens, d_model]` is the hidden state the head and the probes read; `logits` is None
    unless asked for and the subject has a head; `captured` maps hookpoint to `[batch, tokens, d]`."""

    final: Tensor
    logits: Tensor | None
    captured: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedding:
    """A module whose output enters the stream, `token` or `position` embeddings. At place p it embeds token
    p − `shift`; what a decoder starts with counts as token 0."""

    module: nn.Module
    kind: str
    shift: int = 0


@dataclass(frozen=True)
class Memory:
    """What an encoder reads, `ids` and `mask [rows, tokens]`, and what it makes of it, `states [rows, tokens,
    d_model]`; None: nothing yet."""

    ids: Tensor
    mask: Tensor
    states: Tensor | None = None

    def of(self, n_rows: int) -> "Memory":
        """The same of as many rows, where there is one. Raises InputError for another number."""
        if len(self.ids) not in (1, n_rows):
            raise InputError(f"{len(self.ids)} sources for {n_rows} rows: give one for each, or one.")
        parts = (self.ids, self.mask, self.states)
        return Memory(*(x if x is None else x.expand(n_rows, *x.shape[1:]) for x in parts))  # pyright: ignore

    def __getitem__(self, rows: Sequence[int]) -> "Memory":
        at = list(rows)
        return Memory(self.ids[at], self.mask[at], None if self.states is None else self.states[at])


class Changes(Protocol):
    """What a plan of interventions is to a subject."""

    def on(self, subject: "Subject", batch: Batch) -> "Changes": ...
    def applied(self, subject: "Subject") -> AbstractContextManager[None]: ...


class Subject:
    """A language model under study. Weights are in eval mode and never trained here.

    `objective` is what its head predicts, see `Family`; `has_head` is False for a model without a language-model
    head, whose logits are None; `task` is the head of one that was fine-tuned, or None. Layers count the encoder's
    blocks, then the decoder's. `mask_id` is None for a subject that fills no masks. The encoder of an encoder–decoder
    reads `Batch.source`, or the same tokens; the decoder of a denoising one reads them one place to the right, so that
    its place p predicts token p, that of a translating one as they are, so that place p predicts token p + 1; the final
    hidden state is the decoder's.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, files: SubjectFiles, has_head: bool = True,
        task: TaskHead | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.files = model.eval().requires_grad_(False), tokenizer, files
        self.family: Family = family_of(model.config.model_type)
        self.has_head, self.task = has_head, task
        self.objective: Objective = objective_of(model.config, self.family)
        self.mask_id = None if self.predicts_next else self._mask_id()
        # padding is masked out, so any token will do where the tokenizer has none for it
        fillers = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id = cast(int, next(i for i in fillers if i is not None))
        sizes = [len(cast(nn.ModuleList, self.module(stack.layers))) for stack in self.family.stacks]
        self.stack_sizes: tuple[int, ...] = tuple(sizes)
        self._hookpoints: dict[str, tuple[nn.Module, Side]] = {}  # every edited pass looks them up
        self._weight = next(model.parameters())  # of the device and the dtype, which every edited pass asks for
        self.n_layers: int = sum(sizes)
        self.d_model: int = model.config.hidden_size
        self.max_tokens: int = min(tokenizer.model_max_length, self._positions())
        install({*self.attentions, *self.norms.values(), *(e.module for e in self.embeddings), *self._blocks()})
        element = None if files.domain is None else domain_of(files.domain).element
        self._case_matters = element == "atom"
        self._wants_spaces = element == "residue" and wants_spaces(tokenizer)
        special = torch.zeros(len(tokenizer), dtype=torch.bool)
        special[tokenizer.all_special_ids] = True
        self.is_special = special
        self.reads: tuple[int, ...] = ()
        self.memory: Memory | None = None
        self.decodes = False
        self.pools = tuple(nn.Identity() for _ in range(self.n_layers))

    def __repr__(self) -> str:
        shape = (
            f"{self.n_layers} layers × {self.d_model}, vocabulary {len(self.tokenizer)}, up to {self.max_tokens} tokens"
        )
        head = self.objective if self.has_head else "no language-model head"
        head = head if self.task is None else f"head of {self.task.kind}s: {', '.join(self.task.names)}"
        about = f"{self.family.model_type}, {head}"
        place = f"{self.device}, {self.model.dtype}".replace("torch.", "")
        return shortened(f"Subject {self.source}: {about}, domain {self.files.domain}", f"{shape}; {place}")

    @property
    def source(self) -> str:
        return self.files.source

    @property
    def predicts_next(self) -> bool:
        """Whether place p predicts token p + 1, so that no token is masked: causal and translating subjects."""
        return self.objective in ("causal", "translating")

    def _mask_id(self) -> int | None:
        named = cast("int | None", self.tokenizer.mask_token_id)
        filled = self.family.mask and self.tokenizer.get_vocab().get(self.family.mask)
        return (filled or None) if named is None else named

    def content(self) -> Any:
        """What its `identity` is of: config, dtype, weights (as the hash of their files) and tokenizer."""
        return ["subject", *settings_of(self.model, self.tokenizer), self.files.weights_sha256]

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def narrow(self) -> torch.dtype | None:
        """The dtype of the weights where it holds fewer digits than float32: it computes in it then, see `Site`."""
        dtype = self._weight.dtype
        return dtype if dtype in (torch.bfloat16, torch.float16) else None

    def require_float32(self, what: str) -> None:
        """Raises SubjectError for a subject in another precision, in which the parts of `what` do not add up."""
        if self.narrow:
            raise SubjectError(f"{what} needs a subject in float32, {self.source} is loaded in {self.narrow}.")

    def special(self, ids: Tensor) -> Tensor:
        """Which of `ids`, of any shape and on any device, are special tokens; bool."""
        return self.is_special.to(ids.device)[ids]

    def module(self, path: str, layer: int | None = None) -> nn.Module:
        """The module at a path of the family's entry. Raises AttributeError where there is none."""
        path = path if layer is None else path.format(layer)
        if self.model.base_model is self.model and self.family.base:
            path = f"{path}.".removeprefix(f"{self.family.base}.").rstrip(".")
        return self.model.get_submodule(path)

    def hookpoint(self, name: str) -> tuple[nn.Module, Side]:
        """The module and the side of it (`input` or `output`) where the tensor `layers.N.KIND` flows, one of a token or
        one of a whole sequence, see `subjects.heads.pooled`.

        Raises SubjectError for a layer or kind this subject does not have.
        """
        if pooled.is_pooled([name]):
            return pooled.module_at(self, name), "output"
        if name not in self._hookpoints:
            path, side = self.family.hookpoint(name, *self.stack_sizes)
            self._hookpoints[name] = self.module(path), side
        return self._hookpoints[name]

    def mlp(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """The module whose input the MLP of a layer reads, and its last linear map, see `Stack`."""
        return self.hookpoint(f"layers.{layer}.mlp_in")[0], self.hookpoint(f"layers.{layer}.mlp_out")[0]

    def neuron_writes(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """(`[d_ff, d_model]`, bias): what each neuron of a layer's MLP writes per unit of activation."""
        last = self.mlp(layer)[1]
        weight, bias = cast(Tensor, last.weight), cast("Tensor | None", getattr(last, "bias", None))
        # transformers' Conv1D holds the transpose of what nn.Linear does
        weight = weight.T if isinstance(last, nn.Linear) else weight
        return (weight, bias) if not self.narrow else (weight.float(), bias if bias is None else bias.float())

    def n_heads(self, layer: int) -> int:
        """Self-attention heads of a layer."""
        # configs of encoder–decoders call the encoder's number num_attention_heads
        name = "num_attention_heads" if layer < self.stack_sizes[0] else "decoder_attention_heads"
        config = self.model.config
        return getattr(config, name, config.num_attention_heads)

    def d_head(self, layer: int) -> int:
        """Width of the output of one self-attention head."""
        weight = cast(Tensor, self.hookpoint(f"layers.{layer}.head_out")[0].weight)
        # the output side is d_model whether the weight is stored as nn.Linear's or transposed as Conv1D's
        return weight.numel() // self.d_model // self.n_heads(layer)

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """Word embeddings and learned position embeddings, where the subject has them; the encoder's first."""
        shifts = (0, int(self.objective == "denoising"))
        words = [Embedding(self.module(path), "token", shifts[i]) for i, path in enumerate(self.family.words)]
        return (*words, *(Embedding(module, "position") for module in self._present(self.family.positions).values()))

    @property
    def attentions(self) -> list[nn.Module]:
        """What attends, or what sees the pattern, in every layer: see `Family.pattern`."""
        return [self.module(s.path(i, p)) for s, i in self.family.blocks(*self.stack_sizes) for p in s.attention]

    @property
    def norms(self) -> dict[str, nn.Module]:
        """Every norm between embedding and final hidden state, by module path."""
        paths = [s.path(i, p) for s, i in self.family.blocks(*self.stack_sizes) for p in s.norms]
        inner = {path: self.module(path) for path in paths}
        return {p: m for p, m in (inner | self._present(self.family.norms)).items() if not isinstance(m, nn.Identity)}

    def _blocks(self) -> Iterator[nn.Module]:
        """Every module with a hookpoint."""
        for stack, index in self.family.blocks(*self.stack_sizes):
            yield from (self.module(stack.path(index, path)) for path, _ in stack.hookpoints.values())

    def _present(self, paths: Sequence[str]) -> dict[str, nn.Module]:
        """Modules at `paths`, without those that this model lacks."""
        parents = {path: self.module(path.rpartition(".")[0]) for path in paths}
        found = {path: getattr(parent, path.rpartition(".")[2], None) for path, parent in parents.items()}
        return {path: module for path, module in found.items() if module is not None}

    def _positions(self) -> int:
        """How many tokens fit: where padding has a learned position, those of real tokens start behind it. As many
        as the tokenizer allows where positions are relative and the config sets no limit."""
        tables = [cast(nn.Embedding, table) for table in self._present(self.family.positions).values()]
        first = max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return self.tokenizer.model_max_length if limit is None else limit - first

    def tokenized(self, sequences: Sequence[str]) -> list[tuple[list[int], Spans, str | None]]:
        """Of each sequence: ids, character span of every token, and why the subject cannot take it (None: it can).

        Residues are handed to a tokenizer of words between blanks; spans are those of the text as given.
        """
        laid = [spaced(text) for text in sequences] if self._wants_spaces else None
        texts = list(sequences) if laid is None else [text for text, _ in laid]
        found = self.tokenizer(texts, return_offsets_mapping=True, verbose=False)
        offsets: list[Spans] = [tuple((start, end) for start, end in spans) for spans in found["offset_mapping"]]
        if laid is not None:
            offsets = [unspaced(spans, places) for spans, (_, places) in zip(offsets, laid, strict=True)]
        rows = zip(sequences, found["input_ids"], offsets, strict=True)
        return [(ids, spans, self._refusal(text, ids, spans)) for text, ids, spans in rows]

    def _refusal(self, text: str, ids: list[int], offsets: Spans) -> str | None:
        if not text.strip():
            return "the input is empty: give a SMILES or sequence."
        # a tokenizer that knows every byte may use the same token to begin a sequence: there it spans nothing
        unk, spans = self.tokenizer.unk_token_id, zip(offsets, ids, strict=True)
        unknown = sorted({repr(text[a:b]) for (a, b), i in spans if i == unk and a < b})
        if unknown:
            remedy = way_out(unknown, self.tokenizer)
            return f"{text!r} holds tokens {self.source} does not know: {', '.join(unknown)}; {remedy}."
        if len(ids) > self.max_tokens:
            return f"{len(ids)} tokens, but {self.source} takes {self.max_tokens}: shorten {text[:40]!r}…."
        return fault(text, ids, offsets, self.tokenizer, self._case_matters)

    def tokenize(self, sequences: Sequence[str], sources: Sequence[str] | None = None) -> Batch:
        """`sources`: what the encoder reads, one for each or one for all. Raises InputError for an empty, too long or
        unknown-token sequence, the message names the culprit; SubjectError for sources of a subject without encoder and
        decoder."""
        if sources is not None:
            self.require_stacks()
            if len(sources) not in (1, len(sequences)):
                raise InputError(f"{len(sources)} sources for {len(sequences)} sequences: give one for each, or one.")
            return replace(self.tokenize(sequences), source=self.tokenize(sources))
        rows = self.tokenized(sequences)
        if refusal := next((why for *_, why in rows if why), None):
            raise InputError(refusal)
        width = max(len(ids) for ids, *_ in rows)
        ids = torch.full((len(rows), width), self.pad_id)
        for i, (row, *_) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        mask = torch.arange(width)[None] < torch.tensor([len(r) for r, *_ in rows])[:, None]
        return Batch(ids, mask, tuple(sequences), tuple(o for _, o, _ in rows)).to(self.device)

    def tokens(self, ids: Tensor) -> list[str]:
        return [*self.tokenizer.convert_ids_to_tokens(ids.tolist())]

    def token_id(self, token: str) -> int:
        """Raises InputError when the token is not in the vocabulary."""
        index = self.tokenizer.get_vocab().get(token)
        if index is None:
            raise InputError(f"{token!r} is no token of {self.source}: pick one of its vocabulary.")
        return index

    def prepare_prediction(self, batch: Batch, position: int) -> tuple[Batch, int]:
        """The input from which the token at `position` is predicted, and the place whose logits predict it: masked,
        and that position; for a subject that predicts the next token unchanged, and the position before.

        Raises SubjectError without a head or without a mask token, InputError for the first token of a causal subject.
        """
        place = self.reading_position(position)
        if self.predicts_next:
            return batch, place
        ids = batch.ids.clone()
        ids[:, position] = cast(int, self.mask_id)
        return batch.with_ids(ids), place

    def reading_position(self, position: int) -> int:
        """Where the logits of the token at `position` are read; raises as `prepare_prediction` does."""
        if not self.has_head:
            raise SubjectError(f"{self.source} has no language-model head and predicts no token: use {self.instead}.")
        if self.predicts_next:
            if position < 1:
                raise InputError(
                    f"nothing stands before position 0: a {self.objective} subject predicts positions from 1 on."
                )
            return position - 1
        if self.mask_id is None:
            raise SubjectError(f"the tokenizer of {self.source} has no mask token, so no token can be hidden from it.")
        return position

    def reading(self, layers: Sequence[int]) -> "Subject":
        """The same subject, whose `hidden` gives the hidden states of these layers where it is not asked for others."""
        view = copy.copy(self)
        view.reads = tuple(layers)
        return view

    def require_stacks(self) -> None:
        """Raises SubjectError for a subject that is no encoder–decoder."""
        if len(self.stack_sizes) < 2:
            raise SubjectError(f"{self.source} has no encoder beside a decoder: it takes sequences without sources.")

    def encode(self, source: Batch) -> "Memory":
        """What the encoder makes of `source`. Raises SubjectError for a subject that is no encoder–decoder."""
        self.require_stacks()
        encoder = cast(Any, self.model.base_model).encoder
        states = encoder(input_ids=source.ids, attention_mask=source.mask.long()).last_hidden_state
        return Memory(source.ids, source.mask, states)

    def translating(self, source: "Batch | Memory") -> "Subject":
        """The same subject, whose encoder reads `source`, one row or as many as it is asked about, in place of the
        tokens that it is asked about; a `Memory` is not encoded again."""
        self.require_stacks()
        view = copy.copy(self)
        view.memory = Memory(source.ids, source.mask) if isinstance(source, Batch) else source
        return view

    def reconstructing(self) -> "Subject":
        """The same subject, whose final hidden state is what is decoded from its latent, read by the head of that
        decoder: it gives back the tokens it is given. Raises SubjectError for a family without a latent of its own."""
        if self.family.latent is None:
            raise SubjectError(f"{self.family.model_type} has no latent of its own, so nothing is decoded from it.")
        view = copy.copy(self)
        view.decodes = True
        return view

    def hidden(self, ids: Tensor, mask: Tensor, reads: Sequence[int] = ()) -> Tensor:
        """Final hidden state `[batch, tokens, d_model]`, differentiable inside replaced forwards; float32, also of a
        subject in fewer digits. `reads`: the hidden states of these layers instead, side by side in the last
        dimension, counted as transformers' `hidden_states` are: 0 is what the first block reads, n_layers the final
        hidden state."""
        reads = reads or self.reads
        seen: dict[int, Tensor] = {}

        def keep(layer: int, state: Tensor) -> Tensor:
            seen[layer] = state
            return state

        inner = {i: f"layers.{max(0, i - 1)}.resid_{'post' if i else 'pre'}" for i in reads if i < self.n_layers}
        means = {f"layers.{i}.resid_post": pool for i, pool in enumerate(self.pools[:-1]) if is_edited(pool)}
        through = {name: partial(pooled.through_mean, pool, mask) for name, pool in means.items()}
        with (
            hookpoints_edited(self, through) if through else nullcontext(),
            hookpoints_edited(self, {name: partial(keep, i) for i, name in inner.items()}) if inner else nullcontext(),
        ):
            final = self._final(ids, mask)
        seen[self.n_layers] = final.float() if self.narrow else final
        return torch.cat([seen[i] for i in reads], -1) if reads else seen[self.n_layers]

    def _final(self, ids: Tensor, mask: Tensor) -> Tensor:
        """With what is pooled from it, where somebody asks."""
        final, latent, base = self._hidden(ids, mask), self.family.latent, self.model.base_model
        if is_edited(self.pools[-1]):
            final = pooled.through_mean(self.pools[-1], mask, final)
        if latent is None or not (self.decodes or is_edited(self.module(latent.module))):
            return final
        vector = latent.encode(base, final, mask)
        return latent.decode(base, vector, final.shape[1]) if self.decodes else final

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        base, given = cast(Any, self.model.base_model), {"input_ids": ids, "attention_mask": mask.long()}
        if self.objective == "masked":
            return base(**given).last_hidden_state
        if self.objective == "causal":
            return base(**given, use_cache=False).last_hidden_state
        memory = self.memory or Memory(ids, mask)
        memory = memory if memory.states is not None else self.encode(Batch(memory.ids, memory.mask, (), ()))
        memory = memory.of(len(ids))
        if self.objective == "denoising":
            start = ids.new_full((len(ids), 1), self.model.config.decoder_start_token_id)
            given["input_ids"] = torch.cat([start, ids[:, :-1]], 1)
        given |= {"encoder_hidden_states": memory.states, "encoder_attention_mask": memory.mask.long()}
        return base.decoder(**given, use_cache=False).last_hidden_state

    def head(self, final: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` of final hidden states `[..., d_model]`. Raises SubjectError without a head."""
        if not self.has_head:
            raise SubjectError(f"{self.source} has no language-model head: it has hidden states, but no logits.")
        compute = partial(self.family.logits, self.model) if self.family.logits else self.module(self.family.head)
        if self.decodes and self.family.latent:
            compute = self.module(self.family.latent.head)
        return compute(final.to(self.narrow)).float() if self.narrow else compute(final)

    @property
    def instead(self) -> str:
        """What can be explained of a subject that predicts no tokens."""
        return "a probe" if self.task is None else self.task.instead

    def require_task(self, kind: Kind | None = None) -> TaskHead:
        """Raises SubjectError for a subject without the head of a fine-tuned model, or with one of another kind."""
        if self.task is None:
            architecture = (self.model.config.architectures or [""])[0]
            raise headless(self.source, architecture, [name for name in FAMILIES if FAMILIES[name].sequence])
        self.task.require(kind)
        return self.task

    @torch.no_grad()
    def run(
        self, batch: Batch, *, plan: Changes | None = None, capture: Sequence[str] = (), logits: bool = True
    ) -> Output:
        """One free-running pass: attention and norms are recomputed on whatever `plan` makes of the stream.

        `plan`: interventions, see `interventions.plan.Plan`. `capture` lists hookpoints (`layers.N.mlp_in` …, see
        `hookpoint`); what is captured is what flows on.
        """
        captured: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            captured[name] = value
            return value

        asked = self if batch.source is None else self.translating(batch.source)
        changes = nullcontext() if plan is None else self.edited(plan.on(self, batch))
        with changes, hookpoints_edited(self, {name: partial(keep, name) for name in capture}):
            final = asked.hidden(batch.ids, batch.mask, (self.n_layers,))
            return Output(final, self.head(final) if logits and self.has_head else None, captured)

    def generate(
        self, batch: Batch, *, plan: Changes | None = None, generator: torch.Generator | None = None, **sampling: Any
    ) -> Generated:
        """What the subject writes under `plan`: a causal one goes on behind every row, a masked one fills the masked
        tokens, the decoder of an encoder–decoder writes from what the encoder reads. `sampling`: see `Sampling`."""
        with nullcontext() if plan is None else self.edited(plan.on(self, batch)):
            return sampled(self, batch, Sampling(**sampling), generator)

    def edited(self, plan: Changes) -> AbstractContextManager[None]:
        """Context in which everything that runs this subject, in this thread, runs it under `plan`; contexts nest."""
        return plan.applied(self)


def load_subject(
    source: str | Path, *, domain: str | None = None, device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Subject:  # fmt: skip
    """Load `bundled:molm`, `hf:org/name`, or a folder in the Hugging Face layout.

    `domain` says what a token stands for (`molecule`); bundled subjects say it themselves. `device`: cpu, cuda,
    cuda:1 or auto (a GPU where there is one). `dtype`: what it computes in; in bfloat16 its
    numbers are those of a rounded model, edits and results are float32, and trace, circuit and annotate refuse it.
    Raises SubjectError, see `source.resolve` and `loading.load_model`.
    """
    files = resolve(str(source), domain)
    return Subject(*load_model(files, device, getattr(torch, dtype)))

"""Weights written by hand into an ESM, direction by direction, and the checkpoint they are saved as.

Every named direction of the stream is a unit vector of zero mean, orthogonal to all others. Each token carries a
constant *anchor* direction so long that every LayerNorm divides by nearly the same σ; its weight is that σ, so that
a norm passes what is written on almost unchanged. Neurons stand so far above or below zero that GELU is ReLU, which
makes a per-layer transcoder with the neurons as features exact.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM, PreTrainedTokenizerFast

from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.molecule.tokenizer import SPECIAL, build_tokenizer
from isotrace.subjects.loading import quiet
from isotrace.subjects.sources.conversion import build_tokenizer as of_words
from isotrace.subjects.subject import Subject, load_subject

D, HEADS, LAYERS, NEURONS, POSITIONS = 128, 4, 3, 32, 28
SIGMA = 16.0
LENGTH = 2.0
"""Of what embeddings, heads and neurons write: tokens, positions and messages alike."""
OFF = -30.0
"""Bias of a neuron that never fires."""

Node = tuple[int, int]
"""(layer, component)."""


class Weights:
    """A model under construction. `directions` are all names that are read or written; a token t that has a direction
    of its own is named "token t", a position p "position p". `residues`: it reads these, and not molecules;
    `positions` tokens at most."""

    def __init__(self, directions: Sequence[str], residues: str = "", positions: int = POSITIONS) -> None:
        # rows of the discrete cosine transform behind the constant one
        self._index = {name: 1 + at for at, name in enumerate(("anchor", *directions))}
        if len(self._index) != len(directions) + 1 or len(self._index) >= D:
            raise ValueError(f"directions need names of their own, and {D} dimensions hold {D - 2} of them")
        self.domain = "protein" if residues else "molecule"
        self.tokenizer = of_residues(residues) if residues else build_tokenizer([], min_count=1, max_length=positions)
        config = EsmConfig(
            vocab_size=len(self.tokenizer), hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=NEURONS, max_position_embeddings=positions + 2, pad_token_id=1, mask_token_id=4,
            token_dropout=False, position_embedding_type="absolute", emb_layer_norm_before=False,
            tie_word_embeddings=False,
        )  # fmt: skip
        self.model: Any = EsmForMaskedLM(config)
        for name, parameter in self.model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.data.fill_(SIGMA if norm else OFF if name.endswith("intermediate.dense.bias") else 0)
        self._heads, self._neurons = [0] * LAYERS, [0] * LAYERS
        self._embed()

    def __getitem__(self, name: str) -> Tensor:
        """`[d_model]`, unit length."""
        places = (torch.arange(D, dtype=torch.float64) + 0.5) * self._index[name]
        return ((2 / D) ** 0.5 * (places * math.pi / D).cos()).float()

    def _embed(self) -> None:
        embeddings, head = self.model.esm.embeddings, self.model.lm_head
        embeddings.word_embeddings.weight.data += SIGMA * D**0.5 * self["anchor"]
        for token, index in self.tokenizer.get_vocab().items():
            if f"token {token}" in self._index:
                embeddings.word_embeddings.weight.data[index] += LENGTH * self[f"token {token}"]
            if f"answer {token}" in self._index:
                head.decoder.weight.data[index] = self[f"answer {token}"]
        for place in range(POSITIONS):
            if f"position {place}" in self._index:  # positions of real tokens start behind that of padding
                embeddings.position_embeddings.weight.data[place + 2] = LENGTH * self[f"position {place}"]
        # the head passes the stream on: its GELU stands far above zero, and its norm takes the bias off again
        head.dense.weight.data.copy_(torch.eye(D))
        head.dense.bias.data.fill_(5 * SIGMA)

    def head(
        self,
        layer: int,
        match: Sequence[tuple[str | Sequence[str], str, float]],
        moves: Sequence[tuple[str, str, float]],
    ) -> Node:
        """The next head of a layer. `match` (query, key, score): what the logit of two tokens grows by where one has
        the first (or any of several) and the other the second direction in its usual length. `moves` (from, to,
        gain)."""
        attention, width = self.model.esm.encoder.layer[layer].attention, D // HEADS
        if max(len(match), len(moves)) > width:
            raise ValueError(f"a head {width} wide matches and moves {width} directions at most")
        start = self._next(self._heads, layer, HEADS) * width
        for slot, (query, key, score) in enumerate(match, start):
            # ESM divides queries by √width
            attention.self.query.weight.data[slot] = width**0.5 * score / LENGTH**2 * self._sum(query)
            attention.self.key.weight.data[slot] = self[key]
        for slot, (read, write, gain) in enumerate(moves, start):
            attention.self.value.weight.data[slot] = self[read]
            attention.output.dense.weight.data[:, slot] = gain * self[write]
        return layer, start // width

    def _sum(self, names: str | Sequence[str]) -> Tensor:
        return self[names] if isinstance(names, str) else torch.stack([self[name] for name in names]).sum(0)

    def neuron(
        self, layer: int, reads: Mapping[str, float], bias: float, write: str | Mapping[str, float],
        length: float = LENGTH,
    ) -> Node:  # fmt: skip
        """The next neuron of a layer: Σ reads · direction + bias, writing `length` (or the length that `write` names
        for each direction) where its activation is 20."""
        block, slot = self.model.esm.encoder.layer[layer], self._next(self._neurons, layer, NEURONS)
        for name, weight in reads.items():
            block.intermediate.dense.weight.data[slot] += weight * self[name]
        block.intermediate.dense.bias.data[slot] = bias
        for name, long in ({write: length} if isinstance(write, str) else write).items():
            block.output.dense.weight.data[:, slot] += long / 20 * self[name]
        return layer, slot

    def detectors(self, layer: int, pairs: Sequence[tuple[str, str]]) -> list[Node]:
        """A neuron for each (from, to): activation 20 where `from` has its usual length, −20 where it is not there."""
        return [self.neuron(layer, {read: 40 / LENGTH}, -20, write) for read, write in pairs]

    def load(self, folder: Path) -> Subject:
        """Saved as a checkpoint of transformers, and loaded like any other."""
        with quiet():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return load_subject(folder, domain=self.domain)

    @staticmethod
    def _next(used: list[int], layer: int, limit: int) -> int:
        used[layer] += 1
        if used[layer] > limit:
            raise ValueError(f"layer {layer} is full: it has {limit} of these")
        return used[layer] - 1


def of_residues(residues: str) -> PreTrainedTokenizerFast:
    roles: tuple[str, ...] = ("cls", "pad", "sep", "unk", "mask")
    special: dict[str, str] = dict(zip(roles, SPECIAL, strict=True))
    return of_words({word: i for i, word in enumerate((*SPECIAL, *residues))}, ".", special, POSITIONS)


def neurons_as_features(subject: Subject) -> Dictionary:
    """The transcoder whose features are the neurons of a subject with plain MLPs: exact where GELU is ReLU."""
    n_features = len(subject.neuron_writes(0)[0])
    dictionary = build(configure(subject, "transcoder", n_features=n_features, activation="relu"), seed=0)
    for layer in range(subject.n_layers):
        first, (writes, bias) = subject.module(subject.family.mlp_in, layer), subject.neuron_writes(layer)
        assert isinstance(first, torch.nn.Linear)
        assert bias is not None
        dictionary.W_enc[layer].data.copy_(first.weight.T)
        dictionary.b_enc[layer].data.copy_(first.bias)
        dictionary.W_dec[layer].data.copy_(writes)
        dictionary.b_dec[layer].data.copy_(bias)
    return dictionary.requires_grad_(False)

"""Concepts of many sequences as arrays: which tokens form which instance of which concept, and numbers per sequence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isotrace.domains.domain import Concept, Labels


@dataclass(frozen=True, eq=False)
class ConceptTable:
    """Concepts of `n_sequences` sequences whose tokens are numbered through, sequence by sequence.

    sequence_ptr: int64 `[n_sequences + 1]`, tokens of sequence s are sequence_ptr[s] … sequence_ptr[s + 1].
    token_concepts: the concepts of kind `token`; instances of concept c are concept_ptr[c] … concept_ptr[c + 1]
        (int64 `[n_concepts + 1]`), in the order of sequences.
    instance_ptr: int64 `[n_instances + 1]`; the tokens of instance i are tokens[instance_ptr[i] : instance_ptr[i + 1]],
        ascending. An instance lies in one sequence, has at least one token and none twice; instances may overlap.
    tokens: int32.
    sequence_concepts: the concepts of kind `class` and `value`; numbers: float64 `[n_sequences, n]`, NaN = not known.
    sizes: int64 `[n_sequences]`, how many tokens a sequence has, where it has one row in all (`by_sequence`).
    """

    sequence_ptr: np.ndarray
    token_concepts: tuple[Concept, ...]
    concept_ptr: np.ndarray
    instance_ptr: np.ndarray
    tokens: np.ndarray
    sequence_concepts: tuple[Concept, ...]
    numbers: np.ndarray
    sizes: np.ndarray | None = None

    @classmethod
    def of(cls, concepts: Sequence[Concept], lengths: Sequence[int], labels: Iterable[Labels]) -> "ConceptTable":
        """From the labels of every sequence, and the number of tokens of each."""
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        found: list[list[np.ndarray]] = [[] for _ in concepts]
        numbers = []
        for start, label in zip(starts, labels, strict=False):
            for concept, positions in label.instances:
                found[concept].append(np.unique(np.asarray(positions, dtype=np.int64)) + start)
            numbers.append(label.numbers)
        token = [i for i, concept in enumerate(concepts) if concept.kind == "token"]
        rest = [i for i, concept in enumerate(concepts) if concept.kind != "token"]
        instances = [instance for i in token for instance in found[i]]
        return cls(
            starts,
            tuple(concepts[i] for i in token),
            np.cumsum([0, *(len(found[i]) for i in token)], dtype=np.int64),
            np.cumsum([0, *map(len, instances)], dtype=np.int64),
            np.concatenate([np.zeros(0, dtype=np.int64), *instances]).astype(np.int32),
            tuple(concepts[i] for i in rest),
            np.asarray(numbers, dtype=np.float64).reshape(len(lengths), len(concepts))[:, rest],
        )

    @property
    def n_tokens(self) -> int:
        return int(self.sequence_ptr[-1])

    @property
    def n_sequences(self) -> int:
        return len(self.sequence_ptr) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[n_sequences]`: tokens of each, also where all of them share one row."""
        return np.diff(self.sequence_ptr) if self.sizes is None else self.sizes

    def by_sequence(self) -> "ConceptTable":
        """One row per sequence in place of its tokens: it carries each token concept that one of them carries, in one
        instance."""
        n, owner = self.n_sequences, self.sequence_of
        concept = np.repeat(self.concept_of, np.diff(self.instance_ptr))
        carried = np.unique(concept * max(n, 1) + owner[self.tokens])
        per_concept = np.bincount(carried // max(n, 1), minlength=len(self.token_concepts))
        return replace(
            self,
            sequence_ptr=np.arange(n + 1, dtype=np.int64),
            concept_ptr=np.concatenate([[0], np.cumsum(per_concept)]).astype(np.int64),
            instance_ptr=np.arange(len(carried) + 1, dtype=np.int64),
            tokens=(carried % max(n, 1)).astype(np.int32),
            sizes=self.lengths,
        )

    @property
    def sequence_of(self) -> np.ndarray:
        """int64 `[n_tokens]`."""
        return np.repeat(np.arange(self.n_sequences), np.diff(self.sequence_ptr))

    @property
    def concept_of(self) -> np.ndarray:
        """int64 `[n_instances]`."""
        return np.repeat(np.arange(len(self.token_concepts)), np.diff(self.concept_ptr))

    def token_rows(self, sequences: np.ndarray) -> np.ndarray:
        """int64: the tokens of the given sequences (ascending), which is how `take` renumbers them."""
        keep = np.zeros(self.n_sequences, dtype=bool)
        keep[sequences] = True
        return np.flatnonzero(keep[self.sequence_of])

    def take(self, sequences: np.ndarray) -> "ConceptTable":
        """The same of some sequences (ascending, each once), tokens numbered anew."""
        rows = self.token_rows(sequences)
        place = np.full(self.n_tokens, -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        kept = place[self.tokens[self.instance_ptr[:-1]]] >= 0
        sizes = np.diff(self.instance_ptr)
        members = np.repeat(kept, sizes)
        return replace(
            self,
            sequence_ptr=np.concatenate([[0], np.cumsum(np.diff(self.sequence_ptr)[sequences])]).astype(np.int64),
            concept_ptr=np.concatenate(
                [[0], np.cumsum(np.bincount(self.concept_of[kept], minlength=len(self.token_concepts)))]
            ).astype(np.int64),
            instance_ptr=np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64),
            tokens=place[self.tokens[members]].astype(np.int32),
            numbers=self.numbers[sequences],
            sizes=None if self.sizes is None else self.sizes[sequences],
        )

    def pick(self, concepts: np.ndarray) -> "ConceptTable":
        """The same sequences with some of the token concepts (ascending, each once)."""
        keep = np.zeros(len(self.token_concepts), dtype=bool)
        keep[concepts] = True
        kept = keep[self.concept_of]
        sizes = np.diff(self.instance_ptr)
        return replace(
            self,
            token_concepts=tuple(self.token_concepts[i] for i in concepts),
            concept_ptr=np.concatenate([[0], np.cumsum(np.diff(self.concept_ptr)[concepts])]).astype(np.int64),
            instance_ptr=np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64),
            tokens=self.tokens[np.repeat(kept, sizes)],
        )

    def positive(self) -> np.ndarray:
        """int64 `[n_concepts]`: tokens in at least one instance of each concept."""
        pairs = np.repeat(self.concept_of, np.diff(self.instance_ptr)) * max(self.n_tokens, 1) + self.tokens
        return np.bincount(np.unique(pairs) // max(self.n_tokens, 1), minlength=len(self.token_concepts))

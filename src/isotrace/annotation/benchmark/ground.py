"""The ground that graded functions stand on: tokens of many sequences, their concepts, and what lies near what.

Tokens and elements (atoms, residues) are numbered through, sequence by sequence, as in `ConceptTable`. Nothing here
knows a domain: concepts, bonds and partners come from it, quantities of elements from whoever knows some.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from isotrace.base.errors import InputError
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import Domain, Reading

Quantity = Callable[[Reading], np.ndarray]
"""float `[elements]` of a sequence, NaN where it is not defined."""


@dataclass(frozen=True, eq=False)
class Ground:
    """`quantities`: what the elements of a sequence have, by name. `table`: of the same sequences."""

    domain: Domain
    readings: tuple[Reading, ...]
    table: ConceptTable
    quantities: Mapping[str, Quantity]

    @cached_property
    def units(self) -> list:
        return [unit for reading in self.readings for unit in reading.units]

    @cached_property
    def texts(self) -> np.ndarray:
        """object `[tokens]`: each as its tokenizer names it."""
        return np.asarray([unit.text for unit in self.units], dtype=object)

    @cached_property
    def special(self) -> np.ndarray:
        """bool `[tokens]`."""
        return np.asarray([unit.kind == "special" for unit in self.units], dtype=bool)

    @cached_property
    def writes(self) -> sparse.csr_matrix:
        """float32 `[tokens, elements]`: 1 where the token writes the element."""
        tokens, elements = [], []
        for first, start, reading in zip(self.table.sequence_ptr, self.element_ptr, self.readings, strict=False):
            for i, written in enumerate(reading.elements):
                tokens += [first + i] * len(written)
                elements += [start + e for e in written]
        shape = self.table.n_tokens, int(self.element_ptr[-1])
        return sparse.csr_matrix((np.ones(len(tokens), np.float32), (tokens, elements)), shape=shape)

    @cached_property
    def element_ptr(self) -> np.ndarray:
        """int64 `[sequences + 1]`."""
        return np.cumsum([0, *(reading.n_elements for reading in self.readings)], dtype=np.int64)

    @cached_property
    def bonds(self) -> sparse.csr_matrix:
        """float32 `[elements, elements]`, symmetric, 0 and 1."""
        pairs = [self.domain.bonds(r) + s for r, s in zip(self.readings, self.element_ptr, strict=False)]
        a, b = np.concatenate([np.zeros((0, 2), np.int64), *pairs]).T
        n = int(self.element_ptr[-1])
        found = sparse.csr_matrix((np.ones(2 * len(a), np.float32), (np.r_[a, b], np.r_[b, a])), shape=(n, n))
        found.data[:] = 1
        return found

    @cached_property
    def _shells(self) -> list[sparse.csr_matrix]:
        return [sparse.csr_matrix(sparse.identity(int(self.element_ptr[-1])), dtype=np.float32)]

    def shell(self, distance: int) -> sparse.csr_matrix:
        """float32 `[elements, elements]`: 1 where two are exactly so many bonds apart."""
        while len(self._shells) <= distance:
            found = sparse.csr_matrix(self._shells[-1] @ self.bonds)
            for nearer in self._shells:
                found = sparse.csr_matrix(found - found.multiply(nearer))
            found.eliminate_zeros()
            found.data[:] = 1
            self._shells.append(found)
        return self._shells[distance]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {concept.name: i for i, concept in enumerate(self.table.token_concepts)}

    def carries(self, name: str) -> np.ndarray:
        """bool `[tokens]`. Raises InputError for a concept that is not in the list."""
        if (c := self._place.get(name)) is None:
            raise InputError(f"no concept {name!r} in the list: give one of its {len(self._place)} names.")
        at = self.table.instance_ptr[self.table.concept_ptr[c : c + 2]]
        found = np.zeros(self.table.n_tokens, dtype=bool)
        found[self.table.tokens[at[0] : at[1]]] = True
        return found

    @cached_property
    def matrix(self) -> sparse.csr_matrix:
        """float32 `[concepts, tokens]`, 0 and 1."""
        names = self._place
        rows = [sparse.csr_matrix(self.carries(name), dtype=np.float32) for name in names]
        return sparse.csr_matrix(sparse.vstack(rows)) if rows else sparse.csr_matrix((0, self.table.n_tokens))

    def of_elements(self, tokens: np.ndarray) -> np.ndarray:
        """bool `[elements]`: written by any of `tokens` bool `[tokens]`."""
        return self.writes.T @ tokens.astype(np.float32) > 0

    def on_tokens(self, elements: np.ndarray) -> np.ndarray:
        """float64 `[tokens]`: the largest of `elements` float `[elements]` ≥ 0 that a token writes, else 0."""
        values = self.writes.multiply(elements[None, :].astype(np.float64))
        return np.asarray(sparse.csr_matrix(values).max(axis=1).todense()).ravel()

    @cached_property
    def last_element(self) -> np.ndarray:
        """int64 `[tokens]`: the element written last up to and with each token of its sequence, −1 before the first."""
        own = np.full(self.table.n_tokens, -1, dtype=np.int64)
        coo = self.writes.tocoo()
        np.maximum.at(own, coo.row, coo.col)
        place = np.where(own >= 0, np.arange(len(own)), -1)
        last = np.maximum.accumulate(place)
        first = self.table.sequence_ptr[:-1][self.table.sequence_of]
        return np.where(last >= first, own[last], -1)

    @cached_property
    def partner(self) -> np.ndarray:
        """int64 `[tokens]`: the other token of a pair (ring digits, parentheses), −1 where there is none."""
        found = []
        for first, reading in zip(self.table.sequence_ptr, self.readings, strict=False):
            own = (getattr(unit, "partner", None) for unit in reading.units)
            found += [-1 if other is None else first + other for other in own]
        return np.asarray(found, dtype=np.int64)

    @cached_property
    def place_share(self) -> np.ndarray:
        """float64 `[tokens]`: how far along its sequence each is, 0 the first, below 1."""
        ptr = self.table.sequence_ptr
        start = ptr[:-1][self.table.sequence_of]
        return (np.arange(self.table.n_tokens) - start) / np.diff(ptr)[self.table.sequence_of]

    def drawn(self, seed: int) -> np.ndarray:
        """float64 `[tokens]`, uniform on [0, 1): of a sequence the same in any company."""
        parts = [
            np.random.default_rng([seed, zlib.crc32(reading.text.encode())]).random(len(reading.units))
            for reading in self.readings
        ]
        return np.concatenate([np.zeros(0), *parts])

    def quantity(self, name: str) -> np.ndarray:
        """float64 `[elements]`. Raises InputError for an unknown name."""
        if name not in self.quantities:
            raise InputError(f"no quantity {name!r}: give one of {', '.join(self.quantities) or 'none'}.")
        return np.concatenate([np.zeros(0), *(self.quantities[name](reading) for reading in self.readings)])

    def take(self, sequences: Sequence[int] | np.ndarray) -> "Ground":
        """The same of some sequences (ascending)."""
        chosen = tuple(self.readings[i] for i in sequences)
        return Ground(self.domain, chosen, self.table.take(np.asarray(sequences)), self.quantities)

    def pick(self, concepts: np.ndarray) -> "Ground":
        """The same with some of the token concepts (ascending)."""
        return Ground(self.domain, self.readings, self.table.pick(concepts), self.quantities)

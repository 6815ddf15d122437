"""What a domain plug-in is: it reads a sequence, says what every token stands for, labels it, groups and draws it.

A domain is an object with the methods of `Domain`, registered in `DOMAINS`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from isotrace.base.errors import InputError
from isotrace.base.registry import Registry

if TYPE_CHECKING:
    from isotrace.domains.alignment import Alignment


@dataclass(frozen=True)
class Concept:
    """A named property.

    kind: `token`, carried by single tokens in instances; `class`, yes or no of a whole sequence; `value`, a number of
        a whole sequence.
    group: what sort of property it is (`element`, `functional group`, `secondary structure`).
    """

    name: str
    group: str
    kind: Literal["token", "class", "value"]


class Unit(Protocol):
    """One token and what it stands for. Every domain has its own such class; these are common to all.

    `kind` is `special` for tokens that stand for no character, `start:end` the characters it covers. `about`: the
    elements it writes, joins or hangs on.
    """

    @property
    def kind(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def about(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Reading:
    """One sequence as a domain reads it: its text, one unit per token, and the domain's own object (`Chem.Mol`, …).

    `elements[i]` are the atoms or residues (numbered from 0, in the order of writing) that token i writes; empty for
    syntax and special tokens.
    """

    text: str
    units: tuple[Any, ...]
    parsed: Any
    elements: tuple[tuple[int, ...], ...]

    @property
    def n_elements(self) -> int:
        return 1 + max((e for part in self.elements for e in part), default=-1)


@dataclass(frozen=True)
class Labels:
    """What one sequence carries of a list of concepts.

    `instances` are (index in the list, token positions): one ring, one functional group, one helix each. A token
    concept without parts that belong together has one instance per token. `numbers` float64 `[concepts]` holds
    0 or 1 for a class, the number for a value, and NaN for token concepts and where a number is not known.
    """

    instances: tuple[tuple[int, tuple[int, ...]], ...]
    numbers: np.ndarray


@dataclass(frozen=True)
class Group:
    """A part of a sequence in the words of its field. `name`: unique in its sequence. `elements`: ascending, of no
    other group."""

    name: str
    elements: tuple[int, ...]


@dataclass(frozen=True)
class Spelling:
    """Another way to write the same thing: `original[i]` is the element, in the text asked about, that is the i-th
    element written in `text`."""

    text: str
    original: tuple[int, ...]


@dataclass(frozen=True)
class Track:
    """Labels beside elements. `spans`: (label, elements) of each stretch of neighbours that carry the same."""

    name: str
    spans: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Look:
    """How elements are drawn: in two colours by sign where it is `diverging`; full colour at `scale`, None takes the
    largest weight; `small` for cards. `links` (from, to) of elements are lines where the drawing has room for them, as
    a reaction's has, orange or blue as the first weighs and as thick as it does. `tracks` stand under the elements of a
    chain that is drawn in rows."""

    diverging: bool = False
    scale: float | None = None
    small: bool = False
    links: tuple[tuple[int, int], ...] = ()
    tracks: tuple[Track, ...] = ()


PLAIN = Look()


class Domain(Protocol):
    """See the module. `element` is the word for what `Reading.elements` counts: atom or residue; `field`, for what its
    concepts are about: chemistry or biology."""

    name: str
    element: str
    field: str

    def read(
        self, text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], *, begun: bool = False
    ) -> Reading:
        """`begun`: the text is the beginning of a sequence, see `begun`. Raises InputError if it is not valid in this
        domain or the tokens do not cover it."""
        ...

    def begun(self, text: str, whole: str | None) -> str | None:
        """None for a whole sequence, for the beginning of one why it is none itself. `whole`: who reads whole ones
        only; None takes beginnings. Raises InputError for a text that cannot be read."""
        ...

    def renumbered(self, reading: Reading, numbers: Sequence[int]) -> Reading:
        """The same with element i, in the order of writing, called `numbers[i]`."""
        ...

    def check(self, text: str) -> None:
        """Raises InputError, with the reason, if `text` is not valid in this domain."""
        ...

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts the domain labels by itself, names unique."""
        ...

    def label(self, reading: Reading) -> Labels:
        """Of `concepts`."""
        ...

    def match(self, kind: str, pattern: str, reading: Reading) -> list[tuple[int, ...]]:
        """Token positions of every match of a user's pattern; `kind` is `smarts`, `regex` or `prosite`.

        Raises InputError for a pattern that cannot be compiled or a kind the domain does not know."""
        ...

    def groups(self, texts: Sequence[str]) -> list[str]:
        """A name per text, equal for close relatives (scaffold, cluster): splits keep a group on one side."""
        ...

    def same(self, text: str) -> str:
        """A name that all texts of the same thing share: canonical SMILES, the residues without spaces. Raises
        InputError for a text that cannot be read at all."""
        ...

    def parent(self, text: str) -> str:
        """The part that carries a measured property: a molecule without its counter-ions, else the text itself."""
        ...

    substructures: frozenset[str]
    """Names of the concepts that practitioners think in: what a file of sequences is told by."""

    syntax: frozenset[str]
    """Names of the concepts that are about how a sequence is written, not about what it is."""

    fingerprint: str
    """What `fingerprints` are, in a word or two."""

    def fingerprints(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[n, d]` ≥ 0: what a model that knows no language model would learn from."""
        ...

    def complexity(self, text: str) -> float:
        """Of the part of it that is the most monotonous, the lower the more; NaN where a domain has no such number.
        Raises InputError for a text that is not valid."""
        ...

    def degenerate(self, text: str, start: str | None, floor: float | None) -> str | None:
        """What a generator that has left the data would write: why it is that, or None. `start`: what the design began
        as; `floor`: the least usual `complexity`, None = unknown. Raises InputError for a text that is not valid."""
        ...

    def names(self, reading: Reading) -> list[dict[str, Any]]:
        """What every element is called: `symbol`, `name` (unique), and what else its field numbers it by (`number`,
        `chain`, `imgt`). A `side` or `region` sorts it into a class that other sequences have too."""
        ...

    def parts(self, reading: Reading) -> tuple[Group, ...]:
        """The whole sequence in the words of its field, every element in one of them."""
        ...

    def bonds(self, reading: Reading) -> np.ndarray:
        """int64 `[n, 2]`: pairs of neighbouring elements (bonded atoms, residues next in the chain), each once."""
        ...

    def spellings(self, reading: Reading, n: int, seed: int) -> list[Spelling]:
        """Up to `n` others; empty where a thing can be written in one way only."""
        ...

    def align(self, a: Reading, b: Reading) -> "Alignment":
        """Raises InputError, with the reason, for two sequences that cannot be compared part by part."""
        ...

    def draw_pair(
        self, a: Reading, b: Reading, alignment: "Alignment", weights: Sequence[Sequence[float]], scale: float
    ) -> tuple[str, str]:
        """SVG of either, laid out alike, tokens coloured by their `weights` of either sign, full colour at `scale`;
        what the alignment calls changed stands out."""
        ...

    def draw(self, reading: Reading, weights: Sequence[float], *, scale: float | None = None) -> str:
        """SVG, with elements and tokens coloured by `weights` ≥ 0, one per token; `scale` is the weight at full colour,
        None takes the largest."""
        ...

    def draw_elements(self, reading: Reading, weights: Mapping[int, float], look: Look = PLAIN) -> str:
        """SVG without tokens, elements coloured by their `weights`. Of every element `<… class="hit"
        data-element="i">` lies on top to hover, none in a small one."""
        ...

    def picture(self, reading: Reading) -> dict[str, Any]:
        """The same drawing as data for the report's own script; see docs/atlas.md for its two kinds."""
        ...


def is_valid(domain: Domain, text: str) -> bool:
    """Whether `domain.check` takes it."""
    try:
        domain.check(text)
    except InputError:
        return False
    return True


@cache
def regular_expression(pattern: str) -> re.Pattern[str]:
    """Compiled. Raises InputError where it cannot be."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}.") from None


DOMAINS: Registry[Domain] = Registry(
    "domain",
    "isotrace.domains",
    {
        "molecule": "isotrace.domains.molecule.domain:MOLECULE",
        "reaction": "isotrace.domains.reaction.domain:REACTION",
        "protein": "isotrace.domains.protein.domain:PROTEIN",
        "antibody": "isotrace.domains.protein.antibody:ANTIBODY",
    },
)
domain_of = DOMAINS.__getitem__

"""Features of checkpoints that name a dictionary, for the predictors that read some."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.dictionaries.saving import load_dictionary
from isotrace.subjects.subject import Subject
from isotrace.transfer.measuring.lists import Checkpoint
from isotrace.transfer.measuring.settings import MeasureSettings
from isotrace.transfer.predictors.evidence import Basis, Evidence
from isotrace.transfer.predictors.features.bases import BASES, active_columns, bases_of, pooled_features
from isotrace.transfer.predictors.predictor import PREDICTORS


def bases_asked(settings: MeasureSettings) -> list[str]:
    """Bases in which one of the predictors reads features."""
    reading = [name for name in settings.predictors if reads(name)]
    return [basis for basis in BASES if any(name.endswith(f"_{basis}") for name in reading)]


def reads(predictor: str) -> bool:
    return "features" in PREDICTORS[predictor].needs


def checked(checkpoints: Sequence[Checkpoint], corpus: Sequence[str], settings: MeasureSettings) -> None:
    """Raises InputError where features are asked for and there is no corpus that components could be fitted on."""
    if not corpus and bases_asked(settings) and any(one.dictionary for one in checkpoints):
        raise InputError("components are fitted on sequences like those of the pretraining: give --corpus.")


class Features:
    """Of one checkpoint, nothing where it names no dictionary. Bases are made when a predictor first asks for them."""

    def __init__(
        self, checkpoint: Checkpoint, checkpoints: Sequence[Checkpoint], load: Callable[[Checkpoint], Subject],
        subject: Subject, corpus: Sequence[str], settings: MeasureSettings,
    ) -> None:  # fmt: skip
        """Raises DictionaryError as `load_dictionary`."""
        self.subject, self.corpus, self.seed = subject, corpus, settings.seed
        self.asked = bases_asked(settings)
        self.expected: list[str] = []
        self.read: tuple[dict[str, int], dict[str, np.ndarray]] = {}, {}
        self.own, self.blank = None, None
        if not self.asked or checkpoint.dictionary is None:
            return
        self.own = load_dictionary(checkpoint.dictionary, subject)
        if "untrained" in self.asked and checkpoint.untrained is not None:
            other = next(one for one in checkpoints if one.name == checkpoint.untrained)
            assert other.dictionary is not None  # `read_checkpoints` has seen to it
            blank = load(other)
            self.blank = Basis(blank, load_dictionary(other.dictionary, blank))

    @cached_property
    def bases(self) -> dict[str, Basis]:
        assert self.own is not None
        found = bases_of(self.subject, self.own, self.corpus, self.seed, self.blank)
        return {name: found[name] for name in self.asked if name in found}

    @cached_property
    def identity(self) -> str:
        blank = None if self.blank is None else [self.blank.subject, self.blank.dictionary]
        return identity([self.own, blank, [*self.corpus]])

    def asked_by(self, predictor: str) -> bool:
        return self.own is not None and reads(predictor)

    def key(self, predictor: str) -> str:
        """What a score depends on beside the evidence."""
        return f" {self.identity}" if self.asked_by(predictor) else ""

    def expect(self, texts: Iterable[str]) -> None:
        """Texts whose features will be asked for, which are then read together: many of a length make a batch."""
        self.expected = [*dict.fromkeys(texts)]

    def added(self, evidence: Evidence) -> Evidence:
        """The same with features; those of the texts last read are kept."""
        if not {*evidence.texts} <= {*self.read[0]}:
            texts = [*dict.fromkeys([*self.expected, *evidence.texts])]
            made = {name: pooled_features(basis, texts) for name, basis in self.bases.items()}
            self.read = {text: row for row, text in enumerate(texts)}, made
        rows, made = [self.read[0][text] for text in evidence.texts], self.read[1]
        features = {name: active_columns(pooled[rows]) for name, pooled in made.items()}
        return replace(evidence, features=features, bases=dict(self.bases))

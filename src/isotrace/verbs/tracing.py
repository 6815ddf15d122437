"""What traces many inputs: a subject and its dictionary, loaded once."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from isotrace.attribution.maps.many import Maps, one_map
from isotrace.attribution.maps.pair import Corruption, MapSettings, pair_of
from isotrace.attribution.pairs.pair import PairConfig
from isotrace.attribution.pairs.pair import pair as compare_two
from isotrace.attribution.supernodes import Supernodes
from isotrace.attribution.trace import TraceConfig, Traced
from isotrace.attribution.trace import trace as trace_one
from isotrace.base.errors import InputError
from isotrace.base.identity import Source
from isotrace.base.progress import Progress, silent
from isotrace.datasets.annotated import read
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import require_whole_mlp
from isotrace.dictionaries.shelf import ABOUT, shelf_of
from isotrace.domains.domain import Track
from isotrace.domains.molecule.spelling import write
from isotrace.domains.mutations import variant
from isotrace.interventions.components import Values, mean_values
from isotrace.interventions.hookpoints import Neurons
from isotrace.report.atlas.structure import check_structure
from isotrace.report.maps import traced_map
from isotrace.report.pair.pair import PairResult
from isotrace.report.pair.record import PairRecord
from isotrace.report.trace.record import Record
from isotrace.report.trace.trace import TraceResult
from isotrace.report.trace.tracks import read_tracks
from isotrace.subjects.subject import Subject, load_subject
from isotrace.verbs.loading import dictionary_of, domain_of_subject, label

BACKGROUND = 200
"""Example sequences of the dictionary over which the mean of every neuron is taken."""


class Tracer:
    """A subject and its dictionary, loaded once, tracing many inputs. Names and fidelity come from the dictionary's
    shelf, or from run folders of `isotrace annotate` (`names`) and `isotrace evaluate` (`fidelity`).

    Raises SubjectError or DictionaryError when they cannot be loaded or do not belong together.
    """

    def __init__(
        self,
        subject: str | Subject,
        dictionary: str | Path | Dictionary,
        *,
        domain: str | None = None,
        names: Path | None = None,
        fidelity: Path | None = None,
    ) -> None:
        self.subject = subject if isinstance(subject, Subject) else load_subject(subject, domain=domain)
        self.dictionary = dictionary_of(dictionary, self.subject)
        require_whole_mlp(self.dictionary.config, self.subject)
        self.name = label(dictionary)
        shelf = shelf_of(self.dictionary, names=names, fidelity=fidelity)
        self.tables, self.fidelity = shelf.tables, shelf.fidelity
        self._told = [place for place in (names, fidelity) if place is not None]

    @property
    def about(self) -> dict[str, Any]:
        """What made the traces, as data."""
        return {"subject": self.subject.source, "dictionary": self.name, "fidelity": self.fidelity}

    @cached_property
    def inputs(self) -> dict[str, Source]:
        """What traces depend on beside what is traced, as `open_run` takes it."""
        own = self.dictionary.folder
        told = [*self._told, *([own / ABOUT] if own and (own / ABOUT).is_dir() else [])]
        return {
            "subject": Source.of(self.subject.source, self.subject),
            "dictionary": Source.of(self.name, self.dictionary),
            "names and fidelity": Source.of(", ".join(map(str, self._told)) or "the dictionary's own", told),
        }

    @cached_property
    def neuron_means(self) -> Values | None:
        """Means over the dictionary's example sequences; None where it brings none."""
        if self.tables.examples.is_empty():
            return None
        texts = self.tables.examples["sequence"].unique().sort()
        drawn = np.random.default_rng(0).permutation(len(texts))[:BACKGROUND]
        batches = [self.subject.tokenize(texts[part].to_list()) for part in np.array_split(drawn, -(-len(drawn) // 20))]
        return mean_values(self.subject, Neurons(), batches)

    def trace(
        self,
        sequence: str | Chem.Mol,
        target: str,
        config: TraceConfig | None = None,
        *,
        name: str | None = None,
        supernodes: Supernodes | None = None,
        numbers: tuple[int, ...] | None = None,
        structure: Path | None = None,
        tracks: Path | None = None,
        with_map: bool = False,
        progress: Progress = silent,
    ) -> TraceResult:
        """Atoms of a molecule keep their numbers, those of a SMILES are numbered as written, or by `numbers` (see
        `domains.molecule.spelling.Spelling.original`). `structure`: see `Record`. `tracks`: a file of
        labels, see `read_tracks`. `with_map`: see `map_of`. Raises InputError for an input or target that cannot be
        used."""
        if isinstance(sequence, Chem.Mol):
            written = write(sequence)
            sequence, numbers = written.smiles, written.original
        if not isinstance(sequence, str):
            raise InputError(
                f"a trace takes one SMILES, sequence or molecule, not {type(sequence).__name__}: loop over many."
            )
        if structure is not None:
            check_structure(structure, domain_of_subject(self.subject), sequence)
        labels = () if tracks is None else self._labels(tracks, sequence)
        config = config or TraceConfig()
        parts = {"neuron_means": self.neuron_means, "numbers": numbers, "progress": progress}
        traced = trace_one(self.subject, self.dictionary, sequence, target, config, **parts)
        about = self.subject.source, self.name, self.tables, self.fidelity
        mapped = map_of(traced) if with_map else None
        return Record(traced, *about, name, supernodes, structure, labels, mapped).result()

    def _labels(self, tracks: Path, sequence: str) -> tuple[Track, ...]:
        """Read before the trace, so that a wrong file is refused first."""
        domain = domain_of_subject(self.subject)
        return read_tracks(tracks, domain, read(self.subject, domain, sequence)[1])

    def pair(
        self,
        sequence: str | Chem.Mol,
        against: str | Chem.Mol,
        target: str,
        config: PairConfig | None = None,
        *,
        name: str | None = None,
        progress: Progress = silent,
    ) -> PairResult:
        """What differs between two, see docs/pairs.md; atoms are numbered as written. `against` may be `mutation:A24G`,
        the variant of `sequence`. Raises InputError for an input or target that cannot be used, and two that cannot be
        aligned."""
        if isinstance(sequence, str) and isinstance(against, str) and against.startswith("mutation:"):
            against = variant(domain_of_subject(self.subject), sequence, against)
        texts = [write(one).smiles if isinstance(one, Chem.Mol) else one for one in (sequence, against)]
        if wrong := next((one for one in texts if not isinstance(one, str)), None):
            raise InputError(
                f"a pair takes two SMILES, sequences or molecules, not {type(wrong).__name__}: loop over many."
            )
        parts = {"neuron_means": self.neuron_means, "progress": progress}
        asked = texts[0], texts[1], target, config or PairConfig()
        found = compare_two(self.subject, self.dictionary, *asked, **parts)
        return PairRecord(found, self.subject.source, self.name, self.tables, name).result()


def map_of(traced: Traced) -> dict[str, Any]:
    """The tracing map of a traced prediction, its cause hidden behind mask tokens, or, of a subject that fills none,
    exchanged for tokens of its kind."""
    subject = traced.frame.frozen.subject
    how: Corruption = "exchange" if subject.mask_id is None else "mask"
    settings = MapSettings(how, nulls=3, seed=traced.config.seed)
    try:
        pair = pair_of(traced.domain, subject, traced.reading, traced.frame.batch, traced.target, settings)
    except InputError as error:
        return {"reason": str(error).rstrip(".")}
    moved = abs(pair.moved) >= settings.least
    return traced_map(pair, Maps([one_map(pair)], ["it"], settings) if moved else None, settings)

"""The verbs a notebook uses: plain functions returning small objects."""

from pathlib import Path

from rdkit import Chem

from isotrace.attribution.trace import TraceConfig
from isotrace.attribution.trace import trace as trace_one
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary, require_whole_mlp
from isotrace.dictionaries.shelf import shelf_of
from isotrace.report.trace.trace import Trace
from isotrace.subjects.subject import Subject, load_subject


class Tracer:
    """A subject and its dictionary, loaded once, tracing many inputs. Names and fidelity come from the dictionary's
    shelf, or from run folders of `isotrace annotate` (`names`) and `isotrace evaluate` (`fidelity`).

    Raises SubjectError or DictionaryError when they cannot be loaded or do not belong together.
    """

    def __init__(
        self,
        subject: str | Subject,
        dictionary: str | Path,
        *,
        domain: str | None = None,
        names: Path | None = None,
        fidelity: Path | None = None,
    ) -> None:
        self.subject = subject if isinstance(subject, Subject) else load_subject(subject, domain=domain)
        self.dictionary: Dictionary = load_dictionary(dictionary, self.subject)
        require_whole_mlp(self.dictionary.config, self.subject)
        self.name = str(dictionary)
        shelf = shelf_of(self.dictionary, names=names, fidelity=fidelity)
        self.tables, self.fidelity = shelf.tables, shelf.fidelity

    def trace(
        self, sequence: str | Chem.Mol, target: str, config: TraceConfig | None = None, *, name: str | None = None
    ) -> Trace:
        """Raises InputError for an input or target that cannot be used."""
        if isinstance(sequence, Chem.Mol):
            sequence = Chem.MolToSmiles(sequence, canonical=False)
        if not isinstance(sequence, str):
            raise InputError(f"a trace takes one SMILES or molecule, not {type(sequence).__name__}: loop over many.")
        traced = trace_one(self.subject, self.dictionary, sequence, target, config or TraceConfig())
        return Trace(traced, self.subject.source, self.name, self.tables, self.fidelity, name)


def trace(
    subject: str | Subject,
    dictionary: str | Path,
    sequence: str | Chem.Mol,
    target: str,
    config: TraceConfig | None = None,
    *,
    domain: str | None = None,
) -> Trace:
    """Trace one prediction: `trace("bundled:molm", "bundled:molm-clt", "CCO", "probe:bbb")`."""
    return Tracer(subject, dictionary, domain=domain).trace(sequence, target, config)

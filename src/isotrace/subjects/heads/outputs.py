"""What the outputs of a fine-tuned model's head are, as its config says; nothing of it takes torch."""

from collections.abc import Mapping, Sequence
from typing import Literal

from isotrace.base.errors import SubjectError

Kind = Literal["sequence", "token"]
HEADS: dict[str, Kind] = {"ForSequenceClassification": "sequence", "ForTokenClassification": "token"}
"""How the names of transformers' classes end that have such a head."""
REGRESSION, ONE_LABEL, MANY_LABELS = "regression", "single_label_classification", "multi_label_classification"


class Outputs:
    """`names`: of the outputs, as `id2label` in the config has them. `problem`: what they were trained to be, by
    `problem_type` in the config; one that does not say it means one label of several, and None where there is one
    output. `kind`: what the head reads. Raises SubjectError for two outputs of one name."""

    def __init__(self, labels: Mapping[int, str] | Mapping[str, str], problem: str | None, kind: Kind, source: str):
        self.kind, self.source = kind, source
        self.names = tuple(str(name) for _, name in sorted(labels.items(), key=lambda one: int(one[0])))
        if repeated := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise SubjectError(f"two outputs of {source} are called {repeated[0]!r}: name them apart in id2label.")
        self.problem = problem or (None if kind == "sequence" and len(self.names) == 1 else ONE_LABEL)

    @property
    def unnamed(self) -> bool:
        """Whether the names are those that transformers gives outputs of which a config says none."""
        return self.names == tuple(f"LABEL_{place}" for place in range(len(self.names)))

    @property
    def instead(self) -> str:
        """What can be explained of it."""
        named = {"sequence": "class:LABEL, output:NAME or a probe", "token": "label:POS:NAME or a probe"}
        return named[self.kind]

    def require(self, kind: Kind | None) -> None:
        """Raises SubjectError for a head of another kind."""
        if kind not in (None, self.kind):
            raise SubjectError(f"the head of {self.source} reads {self.kind}s: use {self.instead}.")


def headless(source: str, architecture: str, families: Sequence[str] = ()) -> SubjectError:
    """What is said where a head is asked for and none is there, or one of a family that is not among `families`."""
    if families and any(architecture.endswith(end) for end in HEADS):
        return SubjectError(
            f"{source} is a {architecture}, whose head isotrace does not read: it reads those of "
            f"{', '.join(families)}; use a probe."
        )
    return SubjectError(
        f"{source} has no head of a fine-tuned model, as …ForSequenceClassification has one: use a probe, or mask:POS "
        "where it predicts tokens."
    )

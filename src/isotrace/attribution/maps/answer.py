"""A target as a probability: what a map recovers."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

LOG_ODDS = ("logit", "log-odds")


@dataclass(frozen=True)
class Answer(Target):
    """Of `mask:` the softmax probability of the token; of another target in logits or log-odds their logistic function;
    of any other, such as a property, the target itself."""

    @classmethod
    def of(cls, target: Target) -> "Answer":
        return cls(**{field.name: getattr(target, field.name) for field in fields(target)})

    @property
    def measure(self) -> str:
        return "probability" if self.kind == "mask" or self.unit in LOG_ODDS else self.unit

    def value(self, subject: Subject, batch: Batch, hidden: Tensor) -> Tensor:
        return self.read(subject, batch, hidden)[0]

    def read(self, subject: Subject, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(value `[batch]`, whether the answer is right bool `[batch]`: the most probable token, or more than one
        half)."""
        if self.kind == "mask":
            assert self.position is not None
            assert self.positive is not None
            logits = subject.head(hidden[:, subject.reading_position(self.position)])
            return logits.softmax(-1)[:, self.positive], logits.argmax(-1) == self.positive
        value = super().value(subject, batch, hidden)
        if self.measure == "probability":
            value = torch.sigmoid(value)
        return value, value > 0.5

    def places(self, subject: Subject) -> tuple[int, ...]:
        """Where it is read; empty where it is read from the whole sequence."""
        if self.place is not None:
            return (self.place,)
        return tuple(subject.reading_position(at) for at in self.asked)

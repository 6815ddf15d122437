"""What all generators have in common, and which there are."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.registry import Registry
from isotrace.interventions.plan import Plan
from isotrace.steering.decoding.run import Design, Designs, EditByRound, Run, Start
from isotrace.subjects.generation import Sampling
from isotrace.subjects.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """n: designs of each start. temperature, top_p: see `Sampling`. forbidden: tokens that are never written, beside
    special ones. sites: the token positions that may change, counted as in `mask:POS`, of every start or by its row;
    None = all that are no special tokens. Designs of a start do not depend on the starts beside it.

    Raises InputError for numbers that mean nothing, and for settings that a generator has no use for.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    forbidden: tuple[str, ...] = ()
    sites: Sequence[int] | Mapping[int, Sequence[int]] | None = None
    seed: int = 0

    objectives: ClassVar[tuple[str, ...]]
    """Of the subjects that it takes."""
    draws: ClassVar[bool] = True
    changes_sites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sampling = self.sampling
        if self.n < 1:
            raise InputError(f"{self.n} designs of a start are none: give at least 1.")
        if not self.draws and (sampling.temperature, sampling.top_p) != (1, 1):
            raise InputError(f"{self.name} draws nothing: leave out temperature and top_p.")
        if not self.changes_sites and self.sites is not None:
            raise InputError(f"{self.name} writes from left to right: leave out the sites.")

    @property
    def name(self) -> str:
        return next(name for name, kind in DECODERS.items() if kind is type(self))

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)

    def settings(self) -> dict[str, Any]:
        sites = {str(row): [*at] for row, at in self.sites.items()} if isinstance(self.sites, Mapping) else self.sites
        return asdict(self) | {"sites": sites}

    def __call__(self, subject: Subject, starts: Sequence[str], edit: EditByRound = Plan()) -> Designs:  # noqa: B008
        """Designs of `starts`: sequences to change, beginnings to go on with (causal), or what the encoder reads.

        `edit`: a plan, or one for each round, counted from 1. Raises SubjectError for a subject that this generator
        does not serve, InputError where no start can be used; single starts that cannot be are among the rejects.
        """
        if not subject.has_head or subject.objective not in self.objectives:
            kinds = " or ".join(self.objectives)
            raise SubjectError(
                f"{self.name} needs a {kinds} subject with its language-model head, and {subject.source} is "
                f"{subject.objective if subject.has_head else 'without a head'}: take {_for(subject)}."
            )
        run = Run(subject, self, edit)
        rows = [design for start in run.starts(starts) for design in self.designs(run, start)]
        if not rows:
            raise InputError(
                f"no start can be used; first reason: {run.rejects[0][2] if run.rejects else 'none given'}"
            )
        first, last = (tuple(row for row in rows if row.early == early) for early in (True, False))
        return Designs(self.name, self.settings(), last, first, tuple(run.rejects), run.forwards, dict(run.seen))

    @abstractmethod
    def designs(self, run: Run, start: Start) -> Iterator[Design]:
        """Of one start."""


def _for(subject: Subject) -> str:
    fit = [name for name, kind in DECODERS.items() if subject.has_head and subject.objective in kind.objectives]
    return " or ".join(fit) or "a subject that has one"


_NAMES = ("gibbs", "mask_predict", "likelihood_ranked", "sample", "beam")
DECODERS: Registry[type[Decoder]] = Registry(
    "generator", "isotrace.decoders", {name: f"isotrace.steering.decoding.{name}" for name in _NAMES}
)

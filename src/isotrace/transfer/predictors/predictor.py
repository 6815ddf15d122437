"""What a predictor is, the registry of them, and scoring many at once.

A predictor foretells from a checkpoint and the training part of a task how the checkpoint will do after it was adapted.
One file each, registered by a decorator, all run alike: `run(evidence)` gives a finite number, or raises InputError or
SubjectError with the reason why there is none.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.registry import Registry
from isotrace.transfer.predictors.evidence import Evidence

Run = Callable[[Evidence], float]
Need = Literal["subject", "texts", "domain", "features", "corpus"]


@dataclass(frozen=True)
class Row:
    """`score`: NaN with a `reason`. `direction`: +1 where a high score foretells a good outcome, −1 where a low one
    does. `seconds`: of the score alone, from `Evidence` on. `passes`: forward passes of one sequence through the
    checkpoint that it takes in all, a backward pass counted as two, those that made the embeddings among them. `flops`:
    of these, 2 · weights · tokens each, NaN without a subject."""

    predictor: str
    score: float
    direction: Literal[1, -1]
    seconds: float
    passes: float
    flops: float
    reason: str


@dataclass(frozen=True)
class Predictor:
    """`passes`: per sequence, see `Row`; `sampled`: (passes, sequences at most) of what is taken of some beside.
    `needs`: beside embeddings, labels and groups. `of_task`: whether another task has another score. `about`: one line.
    `source`: where it is from."""

    name: str
    run: Run
    direction: Literal[1, -1]
    passes: float
    needs: tuple[Need, ...]
    about: str
    source: str
    sampled: tuple[float, int] = (0, 0)
    of_task: bool = True

    def row(self, evidence: Evidence) -> Row:
        started, score, reason = time.perf_counter(), math.nan, ""
        lacking = next((need for need in self.needs if not getattr(evidence, need)), None)
        try:
            if lacking:
                raise InputError(f"it needs {lacking}, and there is none")
            score = float(self.run(evidence))
            reason = "" if math.isfinite(score) else "it is not defined on these labels"
        except (InputError, SubjectError) as error:
            reason = str(error)
        score = math.nan if reason else score
        seconds = time.perf_counter() - started
        n, (more, most) = len(evidence.y), self.sampled
        passes = self.passes * n + more * min(n, most)
        flops = passes * evidence.flops_per_pass if passes else 0.0
        return Row(self.name, score, self.direction, seconds, passes, flops, reason)

    def score(self, evidence: Evidence) -> float:
        """NaN where it does not apply; `row` gives the reason."""
        return self.row(evidence).score


PREDICTORS: Registry[Predictor] = Registry(
    "predictor",
    "isotrace.predictors",
    {
        name: f"isotrace.transfer.predictors.{module}"
        for name, module in {
            "probe": "probes.probe",
            "probe_best_layer": "probes.best_layer",
            "knn": "probes.knn",
            "forest_fingerprints": "probes.forest",
            "forest_descriptors": "probes.forest",
            "probe_untrained": "probes.untrained",
            "logme": "scores.logme",
            "h_score": "scores.h_score",
            "h_score_shrunk": "scores.h_score",
            "transrate": "scores.transrate",
            "nleep": "scores.nleep",
            "rogi_xd": "scores.rogi_xd",
            "kernel_alignment": "scores.kernel_alignment",
            "tangent_alignment": "gradients.tangent",
            "gradient_snr": "gradients.snr",
            "ln_params": "plain.size",
            "ln_tokens": "plain.size",
            "masked_loss": "plain.masked",
            "corpus_loss": "plain.masked",
            "fertility": "plain.fertility",
            **{
                f"{where}{name}": "landscape.hessian"
                for where in ("", "corpus_")
                for name in ("hessian_trace", "hessian_largest", "sharpness")
            },
            **{
                f"{name}_{basis}": f"features.{module}"
                for name, module in {
                    "sparse": "sparse",
                    "few": "few",
                    "fewest": "few",
                    "inside": "inside",
                    "coverage": "coverage",
                }.items()
                for basis in ("dictionary", "neurons", "pca", "untrained")
            },
        }.items()
    },
)


def predictor(
    name: str, *, source: str, direction: Literal[1, -1] = 1, passes: float = 1, needs: tuple[Need, ...] = (),
    about: str = "", sampled: tuple[float, int] = (0, 0), of_task: bool = True,
) -> Callable[[Run], Run]:  # fmt: skip
    """Decorator of `run`; `about`, or else its docstring's first line, says what the predictor is."""

    def add(run: Run) -> Run:
        said = about or (run.__doc__ or "").partition("\n\n")[0].replace("\n    ", " ").strip()
        PREDICTORS.register(name, Predictor(name, run, direction, passes, needs, said, source, sampled, of_task))
        return run

    return add


def score_all(evidence: Evidence, names: Sequence[str] | None = None) -> list[Row]:
    """A row for each of `names`, by default of all there are. Raises InputError for a name that is not known."""
    return [one.row(evidence) for one in [PREDICTORS[name] for name in (PREDICTORS if names is None else names)]]

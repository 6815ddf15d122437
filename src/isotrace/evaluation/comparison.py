"""Several dictionaries and their controls on the same sequences and masks: one table, differences, Pareto set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from isotrace.activations.harvest import Corpus, mask_rate_of
from isotrace.base.errors import DictionaryError, InputError
from isotrace.base.identity import identity
from isotrace.base.progress import shortened
from isotrace.base.settings import checked_seed
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.replacement import asked_of
from isotrace.evaluation.controls import Sample, make_controls
from isotrace.evaluation.fidelity import (
    MODES,
    Measured,
    Progress,
    measure,
    noted_interval,
    require_predictions,
    summarise,
)
from isotrace.stats.bootstrap import bootstrap_weights
from isotrace.stats.share import share
from isotrace.stats.splits import by_hash
from isotrace.subjects.subject import Subject

FITTING_SHARE = 4  # every fourth sequence, by its hash, is for fitting controls
CONFIG = ("architecture", "activation", "k", "window", "n_features", "layers", "hookpoint_in", "hookpoint_out")
SHARED = ("clean", "n_sequences", "n_tokens", "n_predicted")
SCORES = ("loss_recovered", "top1_agreement", "kl", "cross_entropy")


@dataclass(frozen=True, repr=False)
class Comparison:
    """Numbers of every dictionary and control, as `evaluate` gives them, with name, config, `dictionary_id` (of the
    control itself, where it is one) and `paired`: the differences to the first dictionary.

    A control that does not apply has `reason` and no numbers. `pareto` names the dictionaries that no other one,
    writing to the same hookpoints, beats in both L0 and free-running loss recovered. `fitting` counts the sequences
    and tokens that controls were fitted on; none of those sequences is evaluated. `warnings` name what a reader
    should not miss: undefined numbers, and controls that do as well as the first dictionary.
    """

    subject: str
    subject_id: str
    objective: str
    seed: int
    mask_rate: float
    n_bootstrap: int
    n_sequences: int
    n_tokens: int
    n_predicted: int
    n_masked: int
    fitting: dict[str, int] | None
    clean: dict[str, float]
    dictionaries: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    pareto: list[str]
    warnings: list[str]

    def __repr__(self) -> str:
        found = [f"{one['name']}: loss recovered {_headline(one):.3f}, L0 {one['l0']:.1f}" for one in self.dictionaries]
        return shortened(f"Comparison on {self.n_sequences} sequences, {self.n_predicted} predicted tokens", *found)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_frame(self) -> pl.DataFrame:
        """One row per dictionary and control; controls that do not apply have null numbers."""
        rows = [_flat("dictionary", entry) for entry in self.dictionaries]
        rows += [_flat("control", entry) for entry in self.controls]
        best = pl.col("name").is_in(self.pareto) & (pl.col("kind") == "dictionary")
        return pl.DataFrame(rows, infer_schema_length=None).with_columns(best.alias("pareto"))


def compare(
    subject: Subject,
    dictionaries: Mapping[str, Dictionary],
    sequences: Sequence[str],
    *,
    mask_rate: float | None = None,
    seed: int = 0,
    n_bootstrap: int = 500,
    controls: bool = True,
    progress: Progress = iter,
) -> Comparison:
    """Evaluate named dictionaries, and controls of the first, on `sequences`, as `fidelity.evaluate` does one.

    With `controls`, about a quarter of the sequences is set apart to fit them on: those whose SHA-256 says so, so
    that a sequence that occurs twice never stands on both sides, and neither order nor other rows matter.
    Sequences the subject cannot read are left out. Raises SubjectError and InputError as `measure`, InputError
    also if either side is empty.
    """
    checked_seed(seed)
    if not dictionaries:
        raise DictionaryError("there is no dictionary to evaluate: name at least one.")
    subject = asked_of(subject, [dictionary.config for dictionary in dictionaries.values()])
    require_predictions(subject)
    mask_rate = mask_rate_of(subject, mask_rate)
    objective = "reconstruction" if subject.decodes else subject.objective if subject.task is None else "classes"
    first = next(iter(dictionaries.values()))
    held, fitting = by_hash(sequences, FITTING_SHARE) if controls else (list(sequences), [])
    corpus, sample, extra = Corpus.of(subject, held), None, []
    if controls:
        sample = Sample.of(subject, Corpus.of(subject, fitting), mask_rate=mask_rate, seed=seed)
        if not sample.batches or not len(corpus.ids):
            raise InputError(f"{len(sequences)} sequences are too few to fit controls: give more, or --no-controls.")
        extra = make_controls(first, sample, seed)
    names = [*dictionaries, *(control.name for control in extra if control.dictionary)]
    models = [*dictionaries.values(), *(control.dictionary for control in extra if control.dictionary)]
    found = measure(subject, models, corpus, names=names, mask_rate=mask_rate, seed=seed, progress=progress)
    weights = bootstrap_weights(len(corpus.ids), n_bootstrap, seed)
    scores = [summarise(one, weights) for one in found]
    entries = []
    for name, model, one, score in zip(names, models, found, scores, strict=True):
        config = {key: getattr(model.config, key) for key in CONFIG}
        numbers = {key: value for key, value in score.items() if key not in SHARED}
        same = model.config.writes == first.config.writes
        own = {"name": name, "dictionary_id": identity(model)} | config | numbers
        entries.append(own | {"paired": paired(found[0], one, weights) if same else None})
    trained, untrained = entries[: len(dictionaries)], entries[len(dictionaries) :]
    done = iter(untrained)
    return Comparison(
        subject=subject.source,
        subject_id=identity(subject),
        objective=objective,
        seed=seed,
        mask_rate=mask_rate,
        n_masked=0 if objective in ("causal", "translating", "classes", "reconstruction") else scores[0]["n_predicted"],
        n_bootstrap=n_bootstrap,
        fitting={"n_sequences": sample.n_sequences, "n_tokens": sample.n_tokens} if sample else None,
        **{key: scores[0][key] for key in SHARED},
        dictionaries=trained,
        controls=[
            next(done) | {"reason": None} if control.dictionary else {"name": control.name, "reason": control.reason}
            for control in extra
        ],
        pareto=pareto(trained),
        warnings=_warnings(trained, untrained),
    )


def paired(base: Measured, other: Measured, weights: np.ndarray) -> dict[str, Any]:
    """other − base on the same masks and the same bootstrap draws, per mode: `loss_recovered`, `top1_agreement`,
    `kl` and `cross_entropy` (nats per masked token), each with its `ci`. Both must write to the same hookpoints:
    else their ablated subjects differ, and with them what a loss recovered is relative to."""
    result: dict[str, Any] = {}
    for mode in MODES:
        result[mode] = {}
        for score in SCORES:
            point, drawn = (
                _score(other, mode, score, rows) - _score(base, mode, score, rows) for rows in (base.every, weights)
            )
            result[mode][score] = {"difference": float(point), "ci": noted_interval(drawn, len(base.every))[0]}
    return result


def pareto(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names not dominated: no other entry on the same hookpoints has at most its L0 and at least its free-running
    loss recovered, and is better in one. An undefined loss recovered is never in."""

    def beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        same = all(a[key] == b[key] for key in ("layers", "hookpoint_out"))
        l0, loss = a["l0"] - b["l0"], _headline(a) - _headline(b)
        return same and l0 <= 0 and loss >= 0 and (l0 < 0 or loss > 0)

    defined = [entry for entry in entries if not np.isnan(_headline(entry))]
    return [entry["name"] for entry in defined if not any(beats(other, entry) for other in defined)]


def _warnings(trained: Sequence[Mapping[str, Any]], untrained: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [
        f"{entry['name']}, {mode.replace('_', '-')}: {entry[mode]['note']}"
        for entry in (*trained, *untrained)
        for mode in MODES
        if entry[mode]["note"]
    ]
    for entry in untrained:
        difference = entry["paired"]["free_running"]["loss_recovered"]
        low, high = difference["ci"]
        if high >= 0:
            found.append(
                f"the control {entry['name']} recovers {_headline(entry):.3f} of the loss with as many active "
                f"features, {trained[0]['name']} {_headline(trained[0]):.3f} "
                f"(difference {difference['difference']:+.3f}, 95 % CI {low:+.3f} to {high:+.3f})"
            )
    return found


def _headline(entry: Mapping[str, Any]) -> float:
    return entry["free_running"]["loss_recovered"]


def _score(measured: Measured, mode: str, score: str, weights: np.ndarray) -> np.ndarray:
    if score == "loss_recovered":
        return measured.recovered(mode, weights)
    name = {"top1_agreement": f"{mode}_agree", "kl": f"{mode}_kl", "cross_entropy": mode}[score]
    return share(weights @ measured.sums[name], weights @ measured.sums["n"], 0.0)


def _flat(kind: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "name": entry["name"], "reason": entry.get("reason")}
    if "l0" not in entry:
        return row
    row |= {key: list(entry[key]) if key == "layers" else entry[key] for key in CONFIG}
    for mode in MODES:
        scores = entry[mode]
        row |= {f"{mode}_{score}": scores[score] for score in SCORES} | {f"{mode}_note": scores["note"]}
        row |= {f"{mode}_ci_low": scores["ci"][0], f"{mode}_ci_high": scores["ci"][1]}
        difference = entry["paired"] and entry["paired"][mode]["loss_recovered"]
        row[f"{mode}_difference"] = difference and difference["difference"]
        for end, place in (("low", 0), ("high", 1)):
            row[f"{mode}_difference_ci_{end}"] = difference and difference["ci"][place]
    row |= {"fve": entry["fve"], "l0": entry["l0"], "dead_fraction": entry["dead_fraction"]}
    row |= {f"density_{name}": value for name, value in entry["density"]["quantiles"].items()}
    row |= {f"decoder_norm_{name}": value for name, value in entry["decoder_norms"].items()}
    return row | {"ablated_cross_entropy": entry["ablated"]["cross_entropy"]}

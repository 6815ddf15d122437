"""Cross-validated score of a linear probe of an untrained copy: what the architecture gives."""

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.probing.crossed import crossed
from isotrace.probing.states import pooled_states
from isotrace.transfer.predictors.evidence import Evidence, examples_of
from isotrace.transfer.predictors.predictor import predictor


@predictor("probe_untrained", source="usual practice", needs=("subject", "texts"))
def untrained(evidence: Evidence) -> float:
    """As `probe`, of a copy of the checkpoint with random weights: a control."""
    assert evidence.subject is not None
    blank = untrained_subject(evidence.subject, evidence.seed)
    states = pooled_states(blank, examples_of(blank, evidence.texts), [blank.n_layers], "mean")
    return evidence.worth(crossed(states, evidence.y, evidence.kind, evidence.folds, evidence.classes).outputs)

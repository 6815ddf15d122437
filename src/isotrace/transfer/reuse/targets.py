"""What is taken apart: the outputs of a readout on one sequence, and a masked token as in pretraining."""

from collections.abc import Iterator

import numpy as np

from isotrace.datasets.tasks import Example
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target, parse_target
from isotrace.transfer.adapting.head import Readout
from isotrace.transfer.adapting.tasks import TaskTable

PLACES = 4
"""Labelled atoms or residues of a sequence, drawn at random where there are more."""


def outputs_of(
    subject: Subject, readout: Readout, table: TaskTable, example: Example, rng: np.random.Generator
) -> Iterator[tuple[str, Target]]:
    """(label, target) of every property: the number, the log-odds of two classes, of more the logit of the likeliest
    less the mean of the others; of labels per atom or residue at PLACES of them."""
    outputs = readout.outputs(subject, [example])
    places = range(len(outputs))
    if table.by_token and len(outputs) > PLACES:
        places = np.sort(rng.permutation(len(outputs))[:PLACES]).tolist()
    for prop in table.properties:
        probe = readout.probe(prop, table, table.rows("train", "valid"), subject.files.weights_sha256, "")
        for row in places:
            one, place = probe.only(int(outputs[row, prop.columns].argmax())), None
            if table.by_token:
                place = example.places[row]
            said = f"probe:{prop.label}"
            yield prop.label, Target("probe", said, prop.label, probe.config.unit, probe=one, place=place)


def masked_token(subject: Subject, batch: Batch, rng: np.random.Generator) -> tuple[Batch, Target] | None:
    """A token drawn at random and the input that it is predicted from; None for a subject that predicts no tokens."""
    if not subject.has_head or (subject.mask_id is None and not subject.predicts_next):
        return None
    real = (~subject.special(batch.ids[0]) & batch.mask[0]).nonzero()[:, 0].cpu().numpy()
    if not len(real := real[real > 0]):
        return None
    target = parse_target(f"mask:{rng.choice(real)}", subject, batch)
    return target.prepare(subject, batch), target

"""What the subject says of every sequence of a task."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.special import expit, softmax
from torch import Tensor

from isotrace.base.progress import Progress
from isotrace.datasets.tasks import PARTS, Example, TaskData, batches
from isotrace.discovery.tasks.readout import BATCH_TOKENS, Readout
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Subject


def prediction_table(readout: Readout, data: TaskData) -> pl.DataFrame:
    """One row per sequence, in the order of the input: `index`, `part`, `group`, `predicted`, and of classes the
    probability of each as `p_CLASS`; see docs/circuit.md."""
    rows = []
    for part in PARTS:
        every = predictions(readout, data.parts[part], lambda items, _: items, lambda b: hidden(readout.subject, b))
        for example, outputs in zip(data.parts[part], every, strict=True):
            rows.append({"index": example.index, "part": part, "group": example.group} | _predicted(data, outputs))
    return pl.DataFrame(rows, infer_schema_length=None).sort("index")


def _predicted(data: TaskData, outputs: np.ndarray) -> dict[str, Any]:
    if data.kind == "class":
        shares = class_probabilities(outputs)
        named = {f"p_{name}": float(share) for name, share in zip(data.classes, shares, strict=True)}
        return {"predicted": data.classes[int(shares.argmax())]} | named
    if data.kind == "residue":
        return {"predicted": expit(outputs[:, 0]).tolist()}
    return {"predicted": bool(outputs[0, 0]) if data.kind == "masked" else float(outputs[0, 0])}


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """`[classes]` from the outputs `[1, outputs]` of one example; one output is the log-odds of the second class."""
    return softmax(outputs[0] if outputs.shape[1] > 1 else np.asarray([0.0, outputs[0, 0]]))


@torch.no_grad()
def predictions(
    readout: Readout, examples: Sequence[Example], progress: Progress, run: Callable[[Batch], Tensor]
) -> list[np.ndarray]:
    """Per example float64 `[rows, outputs]` of the readout on final hidden states that `run` gives."""
    found: list[np.ndarray] = []
    for rows, batch in progress(batches(examples, BATCH_TOKENS, readout.subject), "report sequences"):
        chosen = [examples[i] for i in rows]
        outputs = readout.outputs(chosen, batch, run(batch)).double().cpu().numpy()
        found += np.split(outputs, np.cumsum([np.size(e.y) for e in chosen])[:-1])
    return found


def hidden(subject: Subject, batch: Batch) -> Tensor:
    """Final hidden states, by the fastest kernels."""
    with fast_kernels(subject):
        return subject.hidden(batch.ids, batch.mask)

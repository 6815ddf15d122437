"""Circuits of earlier runs, to compare with."""

import json
from pathlib import Path

import polars as pl
import torch

from isotrace.base.errors import InputError
from isotrace.discovery.tasks.basis import Keep
from isotrace.discovery.tasks.task_circuit import TaskCircuit


def earlier_circuit(folder: Path, found: TaskCircuit) -> tuple[str, Keep]:
    """(name, parts) of the circuit in a run folder of `isotrace circuit`. Raises InputError for another folder and for
    a circuit of another dictionary or mediator."""
    try:
        summary = json.loads((folder / "circuit.json").read_bytes())
        table = pl.read_parquet(folder / "parts.parquet")
        same = summary["parts_of"] == found.summary["parts_of"]
        name = f"{summary['task']['label']} ({folder.name})"
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError):
        raise InputError(f"{folder} holds no run of isotrace circuit: give the folder of its --out.") from None
    if not same:
        raise InputError(f"the circuit in {folder} is of another dictionary or mediator: compare circuits of one.")
    layers = found.layer_numbers()
    rows = table.select("layer", "feature").rows()
    return name, tuple(
        torch.tensor(sorted(f for layer, f in rows if layer == number), dtype=torch.long) for number in layers
    )

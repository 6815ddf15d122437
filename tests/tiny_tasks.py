"""Tasks for tiny subjects: molecules with a planted motif, and what is needed around them."""

from functools import cache

import numpy as np
import polars as pl
import torch

import tiny
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.tasks import Example, TaskData, prepare
from isotrace.domains.molecule.domain import MOLECULE


@cache
def molecules(n: int = 96) -> tuple[tuple[str, bool], ...]:
    """(SMILES, whether it holds the motif: a bromine) of many carbon skeletons; half hold it, and the other half a
    chlorine at the same place, so that length and frequency tell nothing."""
    rng = np.random.default_rng(0)
    found: dict[str, bool] = {}
    while len(found) < n:
        before, after = ("".join(rng.choice(["C", "C", "O", "N"], rng.integers(1, 5))) for _ in range(2))
        ring = "C1CCCC1" if rng.random() < 0.3 else "C"
        marked = bool(len(found) % 2)
        found.setdefault(f"{before}C({'Br' if marked else 'Cl'}){ring}C{after}", marked)
    return tuple(found.items())


def rows(label=None, **columns) -> pl.DataFrame:
    """The molecules as `read_inputs` gives them, with a column `label` (1 = motif) unless another is given."""
    texts, marked = zip(*molecules(), strict=True)
    given = {"label": [str(int(m)) for m in marked] if label is None else label} | columns
    return pl.DataFrame({"index": range(len(texts)), "name": None, "sequence": texts, **given})


def task(subject, table=None, **given) -> TaskData:
    """`data.prepare` with what is usual left out."""
    usual = {"label": "label", "kind": None, "split": None, "group": None, "mutations": None, "seed": 0}
    return prepare(subject, MOLECULE, rows() if table is None else table, **usual | given)


def plain_task(subject, texts, labels, kind="regression", classes=()) -> TaskData:
    """The same sequences in all three parts, each its own group: for tests that compare computations."""
    batch = [subject.tokenize([text]) for text in texts]
    examples = [
        Example(i, text, b.ids[0].numpy(), text, label)
        for i, (text, b, label) in enumerate(zip(texts, batch, labels, strict=True))
    ]
    ordered = tuple(sorted(examples, key=lambda e: len(e.ids)))
    return TaskData(kind, "y", classes, dict.fromkeys(("fit", "discover", "report"), ordered), rejects_frame([]))


@cache
def fitted_folder(root):
    """A subject slightly trained to fill masks in the molecules, with linear → ReLU → linear MLPs."""
    model = tiny.fit(tiny.tiny_model("bert", hidden_act="relu").eval(), [text for text, _ in molecules()], steps=60)
    return tiny.save_subject(model, root / "fitted")


def everything(basis):
    return basis.split(torch.arange(basis.n))


def nothing(basis):
    return basis.split(torch.zeros(0, dtype=torch.long))


def random_keep(basis, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return basis.split(torch.nonzero(torch.rand(basis.n, generator=generator) < share)[:, 0])

"""One edit of every kind, with random parameters, on a tiny subject."""

import torch

import tiny
from isotrace.dictionaries.features import Features
from isotrace.interventions import Attentions, Neurons, Residuals
from isotrace.steering import EDITS


def one_of(kind: str, subject, **given):
    """An edit of a kind, with random parameters, at the first layer of its components (the last, for `input`)."""
    generator = torch.Generator().manual_seed(5)
    vector, other = torch.randn(2, subject.d_model, generator=generator)
    parts = {
        "add": {"direction": vector, "scale": 2.0},
        "remove": {"direction": vector},
        "set": {"direction": vector, "target": 2.0, "mean": other},
        "swap": {"direction": vector, "scale": 2.0, "source": other, "share": 0.5},
        "affine": {"scale": 1 + vector, "shift": other},
        "gain": {"components": Neurons(), "beta": torch.randn(Neurons().sizes(subject)[0], generator=generator)},
        "feature": {"units": (1, 3), "values": torch.tensor([3.0, 4.0]), "pool": tuple(range(12))},
        "path": {"points": torch.stack([0 * vector, vector, vector + other])[:, None]},
        "input": {"components": Attentions(), "layer": subject.n_layers - 1, "size": (1, subject.d_model),
                  "sources": {subject.stack_sizes[0] - 1 if len(subject.stack_sizes) > 1 else 0: 2.0}},
    }[kind]  # fmt: skip
    if kind == "feature":
        parts["components"] = Features(tiny.random_dictionary(subject, window=2).to(subject.model.dtype))
    return EDITS[kind](**{"components": Residuals(), "layer": 0} | parts | given)

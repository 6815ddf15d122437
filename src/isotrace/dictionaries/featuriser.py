"""Features of a dictionary as numbers that other tools read: every activation of some sequences, or one row each."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from isotrace.activations.harvest import record
from isotrace.base.errors import InputError
from isotrace.datasets.inputs import read_inputs
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary
from isotrace.subjects.subject import Batch, Subject, load_subject

BATCH_TOKENS = 2_048


def active_features(subject: Subject, dictionary: Dictionary, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
    """Per batch, what is positive, as a structured array with `sequence` (row of the batch), `position`, `layer` (of
    the subject), `feature` and `activation`, ordered by all of them; padding is left out, special tokens are not."""
    config = dictionary.config
    kind = [("sequence", "i8"), ("position", "i8"), ("layer", "i8"), ("feature", "i8"), ("activation", "f4")]
    for batch in batches:
        parts: list[np.ndarray] = []

        def take(slot: int, x: Tensor, batch: Batch = batch, parts: list[np.ndarray] = parts) -> None:
            active = dictionary.encode(slot, x)
            rows, positions, places = torch.nonzero((active.values > 0) & batch.mask[..., None], as_tuple=True)
            found = np.empty(len(rows), dtype=kind)
            found["sequence"], found["position"], found["layer"] = rows.cpu(), positions.cpu(), config.layers[slot]
            found["feature"] = active.indices[rows, positions, places].cpu()
            found["activation"] = active.values[rows, positions, places].float().cpu()
            parts.append(found)

        record(subject, batch, config.reads, take)
        every = np.concatenate(parts)
        yield every[np.lexsort([every[name] for name in ("feature", "layer", "position", "sequence")])]


def batches_of(subject: Subject, texts: Sequence[str]) -> list[tuple[np.ndarray, Batch]]:
    """(rows of `texts`, unpadded batch), shortest first, about `BATCH_TOKENS` tokens each. Raises InputError for a text
    that the subject cannot read."""
    alone = [subject.tokenize([text]) for text in texts]
    lengths = np.asarray([one.ids.shape[1] for one in alone], dtype=int)
    found = []
    for length in np.unique(lengths):
        rows, step = np.flatnonzero(lengths == length), max(1, BATCH_TOKENS // int(length))
        for part in (rows[start : start + step] for start in range(0, len(rows), step)):
            ones = [alone[row] for row in part]
            ids, mask = (torch.cat(tensors) for tensors in zip(*((one.ids, one.mask) for one in ones), strict=True))
            offsets = tuple(one.offsets[0] for one in ones)
            found.append((part, Batch(ids, mask, tuple(one.sequences[0] for one in ones), offsets)))
    return found


class Featuriser(TransformerMixin, BaseEstimator):
    """Sequences → one row each, with the largest or mean activation of every feature over the tokens that are not
    special. A scikit-learn transformer: nothing is learned from the data.

    subject, dictionary: loaded, or their names. pool: `max` or `mean`. sparse_output: a SciPy CSR array float32, or
    a NumPy array. `X` is whatever isotrace reads sequences from: text, a list, a Series, a table, molecules, a path.
    """

    def __init__(
        self,
        subject: Subject | str,
        dictionary: Dictionary | str,
        *,
        pool: Literal["max", "mean"] = "max",
        sparse_output: bool = True,
    ) -> None:
        self.subject = subject
        self.dictionary = dictionary
        self.pool = pool
        self.sparse_output = sparse_output

    def __sklearn_clone__(self) -> "Featuriser":
        """Shares subject and dictionary: they are large, and nothing here changes them."""
        return type(self)(**self.get_params(deep=False))

    def __getstate__(self) -> dict[str, Any]:
        """What was loaded by name is loaded again."""
        state: Any = super().__getstate__()
        return {key: value for key, value in state.items() if key != "_loaded"}

    def fit(self, X: Any, y: Any = None) -> Self:
        """Loads what has a name. Raises InputError for another `pool`."""
        if self.pool not in ("max", "mean"):
            raise InputError(f"pool {self.pool!r}: use max or mean.")
        config = self._pair()[1].config
        self.layers_, self.n_features_out_ = config.layers, config.n_layers * config.n_features
        return self

    def transform(self, X: Any) -> Any:
        """float32 `[sequences, layers · features]`. Raises InputError where a sequence cannot be read: rows must not
        be lost here."""
        check_is_fitted(self)
        subject, dictionary = self._pair()
        config = dictionary.config
        rows, rejects = read_inputs(X)
        if rejects.height:
            raise InputError(f"row {rejects['index'][0]} cannot be used ({rejects['reason'][0]}): leave it out.")
        batches = batches_of(subject, rows["sequence"].to_list())
        parts = []
        for (places, batch), found in zip(
            batches, active_features(subject, dictionary, [batch for _, batch in batches]), strict=True
        ):
            special = subject.special(batch.ids).cpu().numpy()
            found = found[~special[found["sequence"], found["position"]]]
            slots = np.searchsorted(config.layers, found["layer"])
            columns = slots * config.n_features + found["feature"]
            keys, inverse = np.unique(np.stack([found["sequence"], columns]), axis=1, return_inverse=True)
            values = np.zeros(keys.shape[1], dtype=np.float64)
            if self.pool == "max":
                np.maximum.at(values, inverse, found["activation"])
            else:
                np.add.at(values, inverse, found["activation"])
                values /= (~special).sum(1)[keys[0]]
            parts.append((places[keys[0]], keys[1], values))
        at, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        shape = rows.height, self.n_features_out_
        matrix = sparse.csr_array((values.astype(np.float32), (at, columns)), shape=shape)
        return matrix if self.sparse_output else matrix.toarray()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """`LAYER.FEATURE`, as the atlas writes them."""
        check_is_fitted(self)
        n = self.n_features_out_ // len(self.layers_)
        return np.asarray([f"{layer}.{feature}" for layer in self.layers_ for feature in range(n)], dtype=object)

    def _pair(self) -> tuple[Subject, Dictionary]:
        given = self.subject, self.dictionary
        if getattr(self, "_loaded", (None,))[0] != given:
            subject = self.subject if isinstance(self.subject, Subject) else load_subject(self.subject)
            dictionary = self.dictionary
            if not isinstance(dictionary, Dictionary):
                dictionary = load_dictionary(dictionary, subject)
            self._loaded = given, (subject, dictionary)
        return self._loaded[1]

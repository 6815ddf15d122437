"""Features of a dictionary as numbers that other tools read: every activation of some sequences, or one row each."""

from typing import Any, Literal, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from isotrace.base.errors import InputError
from isotrace.datasets.inputs import read_inputs
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import active_features, batches_of
from isotrace.dictionaries.saving import load_dictionary
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject, load_subject


class Featuriser(TransformerMixin, BaseEstimator):
    """Sequences → one row each, with the largest or mean activation of every feature over the tokens that are not
    special, or its one activation of the sequence at a pooled hookpoint. A scikit-learn transformer: nothing is
    learned from the data.

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
        batches, pooled = batches_of(subject, rows["sequence"].to_list()), is_pooled(config.reads)
        parts = []
        for (places, batch), found in zip(
            batches, active_features(subject, dictionary, [batch for _, batch in batches]), strict=True
        ):
            special = subject.special(batch.ids).cpu().numpy()
            if pooled:
                special = special[:, :1] & False
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

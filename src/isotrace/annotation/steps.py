"""What an annotation computes before anything is put together: steps that leave a file each, whoever does them.

1. drawn      what stands beside the dictionary: random directions, and the dictionary of the untrained subject
2. harvested  activations of the dictionary and of every null, in chunks
3. shuffled   the largest F1s with shuffled labels, some shuffles of a layer of a source; only where others help, since
              the next kind does it too
4. examined   each layer of each source: pairs chosen on one side, scored on the other, shuffled (see `site`), and the
              same of whole sequences (see `sequences`)

A step needs those of the kinds before it, and no other of its own kind.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy import sparse

from isotrace.activations.harvest import Corpus, record
from isotrace.annotation import sequences
from isotrace.annotation.nulls import sources
from isotrace.annotation.site import Sides, SiteResult, examine, null_draws
from isotrace.base.work import Work
from isotrace.datasets.annotated import Data, untestable
from isotrace.datasets.concept_table import ConceptTable
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.evaluation.controls import random_directions
from isotrace.stats.bootstrap import bootstrap_weights
from isotrace.subjects.subject import Batch, Subject
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train_dictionary

if TYPE_CHECKING:
    from isotrace.annotation.annotate import AnnotationConfig

Kind = Literal["drawn", "harvested", "shuffled", "examined"]
SHUFFLES = 100
"""Of a step."""


@dataclass(frozen=True)
class Step:
    """`place`: number of a chunk, or a layer. `first`: of the shuffles."""

    kind: Kind
    source: str
    place: int = 0
    first: int = 0

    @property
    def file(self) -> str:
        """That is there when it is done."""
        name = f"{self.source}.{self.place}"
        return {
            "drawn": f"{self.source}.pt" if self.source == "untrained" else f"{self.source}.npz",
            "harvested": sources.chunk_file(self.source, self.place),
            "shuffled": f"shuffled-{name}-{self.first:06d}.npz",
            "examined": f"site-{name}.npz",
        }[self.kind]


@dataclass(frozen=True, eq=False)
class Steps:
    """`untrained`: a re-initialised subject and its dictionary, instead of training one. `work`: where files are."""

    subject: Subject
    dictionary: Dictionary
    data: Data
    config: "AnnotationConfig"
    untrained: tuple[Subject, Dictionary] | None
    work: Work

    @cached_property
    def reasons(self) -> list[str | None]:
        """Why a concept cannot be tested, None where it can; those of tokens first."""
        return untestable(self.data.table, self.data.held, self.data.special, self.config.min_positive)

    @cached_property
    def tested(self) -> np.ndarray:
        """bool `[concepts of tokens]`."""
        n = len(self.data.table.token_concepts)
        return np.asarray([reason is None for reason in self.reasons[:n]], dtype=bool)

    @cached_property
    def table(self) -> ConceptTable:
        """Of the token concepts that are tested."""
        return self.data.table.pick(np.flatnonzero(self.tested))

    @property
    def sequence_reasons(self) -> list[str | None]:
        return self.reasons[len(self.tested) :]

    @cached_property
    def widths(self) -> dict[str, dict[int, int]]:
        """Source → layer → its features, in the order of `sources.NAMES`."""
        config, layers = self.dictionary.config, self.dictionary.config.layers
        found = {"dictionary": dict.fromkeys(layers, config.n_features)}
        if "neuron" in self.subject.family.hookpoints:
            found["neurons"] = {site.layer: site.n_features for site in self._neurons()}
        given = config if self.untrained is None else self.untrained[1].config
        found["untrained"] = dict.fromkeys(given.layers, given.n_features)
        found["random"] = dict.fromkeys(layers, config.n_features)
        found["token_identity"] = {-1: len(self.subject.tokenizer)}
        return {name: found[name] for name in sources.NAMES if name in self.config.sources and found.get(name)}

    def of(self, kind: Kind) -> list[Step]:
        if kind == "drawn":
            own = [] if self.untrained is not None else ["untrained"]
            return [Step(kind, name) for name in ("random", *own) if name in self.widths]
        if kind == "harvested":
            labels = ["trained", *(["untrained"] if "untrained" in self.widths else [])]
            return [Step(kind, label, place) for label in labels for place in range(len(self.chunks))]
        every = [(name, layer) for name, own in self.widths.items() for layer in own]
        if kind == "shuffled":
            firsts = range(0, self.config.n_permutations, SHUFFLES)
            return [Step(kind, name, layer, first) for name, layer in every for first in firsts]
        return [Step(kind, name, layer) for name, layer in every]

    def is_done(self, step: Step) -> bool:
        """A training leaves its file before it is done: it is where all that is made with it is."""
        if step == Step("drawn", "untrained"):
            return all(self.is_done(one) for one in self.of("harvested") if one.source == "untrained")
        return (self.work.folder / step.file).is_file()

    def do(self, step: Step) -> None:
        getattr(self, f"_{step.kind}")(step)

    def load(self, source: str, layer: int) -> sparse.csr_matrix:
        """Activations `[tokens, features]`."""
        if source == "token_identity":
            return sources.token_identity(self.data, len(self.subject.tokenizer))
        label = "untrained" if source == "untrained" else "trained"
        return sources.load(self.work.folder, label, f"{source}.{layer}", self.widths[source][layer])

    def site(self, source: str, layer: int) -> SiteResult:
        return SiteResult.load(self.work.folder / Step("examined", source, layer).file)

    def sequences(self, source: str, layer: int) -> dict[str, sequences.PooledResult]:
        return sequences.read(self.work.folder / f"sequences-{source}.{layer}.npz")

    @cached_property
    def chunks(self) -> list[list[Batch]]:
        return sources.chunks(self.data)

    def _drawn(self, step: Step) -> None:
        if step.source == "untrained":
            self._learned  # noqa: B018
            return
        k = _mean_l0(self.subject, sources.dictionary_sites("dictionary", self.dictionary), self.data)
        means = sources.input_means(self.subject, self.dictionary, self.data)
        self.work.arrays(step.file, {"k": np.asarray(k), "means": means.cpu().numpy()})

    def _harvested(self, step: Step) -> None:
        subject, sites = self._sites[step.source]
        self.work.arrays(step.file, sources.harvest(subject, sites, self.chunks[step.place]))

    def _shuffled(self, step: Step) -> None:
        n = min(SHUFFLES, self.config.n_permutations - step.first)
        given = {"n_permutations": n, "start": step.first, "seed": self.config.seed}
        drawn = null_draws(
            self.load(step.source, step.place), self._sides(step.source), self.config.quantiles, **given
        )  # fmt: skip
        self.work.arrays(step.file, {"null_max": drawn})

    def _examined(self, step: Step) -> None:
        config, activations, sides = self.config, self.load(step.source, step.place), self._sides(step.source)
        per_feature = step.source == "dictionary"
        found = sequences.examine_sequences(
            activations, self.data, self.sequence_reasons, config, per_feature=int(per_feature)
        )  # fmt: skip
        self.work.arrays(f"sequences-{step.source}.{step.place}.npz", sequences.arrays_of(found))
        examined = examine(
            activations, sides, bootstrap_weights(sides.held.table.n_sequences, config.n_bootstrap, (config.seed, 2)),
            quantiles=config.quantiles, per_feature=config.per_feature * per_feature, per_concept=config.per_concept,
            n_permutations=config.n_permutations, seed=config.seed, null_max=self._shuffles(step),
        )  # fmt: skip
        self.work.arrays(step.file, examined.arrays())

    def _shuffles(self, step: Step) -> np.ndarray | None:
        """float32 `[permutations, concepts]`, None where steps of shuffles are left."""
        firsts = range(0, self.config.n_permutations, SHUFFLES)
        steps = [Step("shuffled", step.source, step.place, first) for first in firsts]
        if not all(self.is_done(one) for one in steps):
            return None
        return np.concatenate([np.load(self.work.folder / one.file)["null_max"] for one in steps])

    def _sides(self, source: str) -> Sides:
        if source not in self._latest:
            self._latest.clear()
            self._latest[source] = Sides.of(
                self.table, self.data.held, self.data.special, self._share(source), self.config.seed
            )
        return self._latest[source]

    @cached_property
    def _latest(self) -> dict[str, Sides]:
        return {}

    def _share(self, source: str) -> float:
        """Of the sequences that permutations look at, so that they meet about `null_activations` positive ones."""
        layers = self.widths[source]
        if source == "token_identity":
            total = self.load(source, -1).nnz
        else:
            label = "untrained" if source == "untrained" else "trained"
            total = sum(sources.n_active(self.work.folder, label, f"{source}.{layer}") for layer in layers)
        return min(1.0, 2 * self.config.null_activations / max(total, 1))

    def _neurons(self) -> list[sources.Site]:
        if self.data.whole:
            return sources.coordinate_sites(self.dictionary)
        return sources.neuron_sites(self.subject, self.dictionary.config.layers)

    def _beside(self) -> list[sources.Site]:
        return self._neurons() if "neurons" in self.widths else []

    @cached_property
    def _sites(self) -> dict[str, tuple[Subject, list[sources.Site]]]:
        """By label of chunks: what is harvested from which subject."""
        own = [*sources.dictionary_sites("dictionary", self.dictionary), *self._beside()]
        if "random" in self.widths:
            with np.load(self.work.folder / Step("drawn", "random").file) as drawn:
                means, k = torch.from_numpy(drawn["means"]).to(self.subject.device), int(drawn["k"])
            n = self.dictionary.config.n_features
            made = random_directions(self.subject, self.dictionary, means, n, k, self.config.seed)
            own += sources.dictionary_sites("random", made)
        found = {"trained": (self.subject, own)}
        if "untrained" in self.widths:
            blank, learned = self._learned
            found["untrained"] = blank, sources.dictionary_sites("untrained", learned)
        return found

    @cached_property
    def _learned(self) -> tuple[Subject, Dictionary]:
        """The same architecture of dictionary, trained on the same sequences through random weights."""
        if self.untrained is not None:
            return self.untrained
        config, blank = self.config, sources.untrained_subject(self.subject, self.config.seed)
        corpus = Corpus.of(blank, [reading.text for reading in self.data.readings])
        dead = min(200_000, config.untrained_tokens // 4)
        training = TrainingConfig(tokens=config.untrained_tokens, dead_after=dead)
        file = self.work.path(Step("drawn", "untrained").file)
        return blank, train_dictionary(blank, corpus, self.dictionary.config, training, file, measure=False)


def _mean_l0(subject: Subject, own: list[sources.Site], data: Data) -> int:
    """Active features per token and layer on one batch of every tenth length, rounded, at least 1."""
    active = tokens = 0
    for number, (_, batch) in enumerate(data.batches(sources.BATCH_TOKENS)):
        if number % 10 == 0:
            found: list[int] = []
            hookpoints = [site.hookpoint for site in own]
            batch = batch.to(subject.device)
            record(subject, batch, hookpoints, lambda i, x: found.append(len(own[i].encode(x.flatten(0, 1))[2])))  # noqa: B023
            active, tokens = active + sum(found), tokens + sources.rows_of(batch, hookpoints) * len(own)
    return max(1, round(active / tokens))

"""A language model as a labeler: it explains from examples, then says on which graded sequences a function fires."""

import numpy as np
from scipy import sparse

from isotrace.annotation.benchmark.bench import Bench
from isotrace.annotation.benchmark.grade import Label
from isotrace.annotation.benchmark.labelers import Labeler, Shown
from isotrace.annotation.explain.chat import Chat
from isotrace.annotation.explain.explain_features import THINGS
from isotrace.annotation.explain.labels import MalformedError, detected, explain, make_task
from isotrace.base.errors import InputError


def language_model(made: Bench, chat: Chat, n_items: int = 20) -> Labeler:
    """Explanations as `isotrace annotate --explain` asks for them, without concepts to choose from; one that does not
    pass detection on the shown sequences is an abstention. Then `n_items` graded sequences are asked about, half of
    which fire, with silent ones of like length. The labeler raises as `Chat.ask`."""
    domain = made.ground.domain.name
    things = THINGS.get(domain, f"{domain} sequences")
    graded = made.part == 2

    def label(shown: Shown) -> list[Label]:
        labels: list[Label] = [Label("")] * len(made.functions)
        tasks = []
        for f in range(len(made.functions)):
            own = sparse.csc_matrix(shown.activations[:, [f]])
            try:
                readings, ptr = shown.ground.readings, shown.ground.table.sequence_ptr
                tasks.append(make_task((0, f), own, readings, ptr, shown.held, concepts=(), seed=shown.seed))
            except InputError as error:
                labels[f] = Label(str(error))
        for found in explain(tasks, chat, things=things):
            f = found.key[1]
            labels[f] = Label(found.text or found.reason or "")
            if found.reason is None and found.text is not None:
                labels[f] = Label(found.text, fires=fires(f, found.text))
        return labels

    def fires(f: int, text: str) -> np.ndarray | None:
        """`[graded sequences]`, NaN where it was not asked; None for an answer that does not say."""
        own = sparse.csc_matrix(made.functions[f].values[:, None])
        readings, ptr = made.ground.readings, made.ground.table.sequence_ptr
        found = np.full(int(graded.sum()), np.nan)
        try:
            task = make_task((0, f), own, readings, ptr, graded, concepts=(), seed=made.seed, n_items=n_items)
            said = detected(text, [item for item, _ in task.items], chat, things)
        except (InputError, MalformedError):
            return None
        place = {readings[s].text: i for i, s in enumerate(made.graded_on)}
        found[[place[item] for item, _ in task.items]] = said
        return found

    return label

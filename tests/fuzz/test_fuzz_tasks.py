"""Odd tables of a task: every row is an example or a reject, or one line says why there is no task."""

import odd_tasks
from test_fuzz import each, refusal, seeds

from isotrace.base.errors import IsotraceError
from isotrace.datasets.tasks import prepare
from isotrace.domains.protein.domain import PROTEIN


@seeds
def test_tasks(seeds, rotary):
    kinds, made = set(), 0

    def one(rng):
        nonlocal made
        table, arguments, right, wrong = odd_tasks.task(rng)
        try:
            data = prepare(rotary, PROTEIN, table, seed=0, **arguments)
        except IsotraceError as error:
            refusal(error)
            return
        made += 1
        kinds.add(data.kind)
        examples = [example.index for part in data.parts.values() for example in part]
        rejects = data.rejects["index"].to_list()
        assert sorted(examples + rejects) == list(range(table.height))
        assert wrong <= set(rejects)
        assert all(data.rejects["reason"])
        if data.kind in ("class", "masked", "mutation"):
            assert right <= set(examples)
        if data.kind == "class":
            assert not {"NA", "None", "", "?"} & set(data.classes)

    each(seeds, one)
    assert len(kinds) > 3
    assert made > len(seeds) // 5

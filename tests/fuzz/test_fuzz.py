"""Odd inputs of every kind: what comes of one is the right result, a reject with a reason, or one line that says why.

No other exception leaves a reader, and no row is lost: rows and rejects together are the rows written. Inputs are made
from seeds, fifty of a kind here and a thousand in `make test-all`; a failure names its seed.
"""

import re
from random import Random

import numpy as np
import odd_concepts
import odd_lists
import odd_sd
import odd_structures
import odd_tables
import polars as pl
import pytest
from odd import ODD, PROTEINS, REACTIONS, SMILES, damaged, text

from isotrace.base.errors import IsotraceError
from isotrace.datasets.concept_files import label_columns, read_concept_file
from isotrace.datasets.inputs import read_inputs
from isotrace.domains.domain import Reading, domain_of
from isotrace.domains.protein.structure import match_chains, read_structure
from isotrace.verbs.loading import named

SEEDS = [range(50), pytest.param(range(50, 1000), marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
seeds = pytest.mark.parametrize("seeds", SEEDS, ids=["some", "many"])


def refusal(error: IsotraceError) -> None:
    said = str(error)
    assert len(said) > 10
    assert "\n" not in said
    said.encode()


def check(rows: pl.DataFrame, rejects: pl.DataFrame, case) -> None:
    found = {row["index"]: row for row in rows.to_dicts()}
    refused = {}
    for index, shown, reason in rejects.rows():
        swallowed = re.match(r"lines (\d+) to (\d+) cannot be read", reason)
        assert reason
        (reason + shown).encode()
        refused[index] = 1 + int(swallowed[2]) - int(swallowed[1]) if swallowed else 1
    assert not found.keys() & refused.keys()
    assert len(found) == rows.height
    assert len(refused) == rejects.height
    if case.n is None:
        return
    assert sorted([*found, *refused]) == list(range(case.n))
    assert refused.keys() >= case.wrong
    for i, (sequence, cells) in case.right.items():
        assert found[i]["sequence"] == sequence
        for key, value in cells.items():
            assert value is None or str(found[i][key] if found[i][key] is not None else "") == value


def inputs_of(case, folder) -> None:
    try:
        rows, rejects = read_inputs(case.write(folder))
    except IsotraceError as error:
        refusal(error)
        assert not case.right  # what is right in it must not be lost with the rest
        return
    check(rows, rejects, case)
    for sequence in rows["sequence"]:
        judged(sequence)


def judged(text: str) -> None:
    for domain in ("molecule", "reaction", "protein", "antibody"):
        try:
            domain_of(domain).check(text)
        except IsotraceError as error:
            refusal(error)


def each(seeds, do) -> None:
    for seed in seeds:
        try:
            do(Random(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@seeds
@pytest.mark.parametrize(
    "make",
    [odd_lists.lines, odd_lists.fasta, odd_tables.table, odd_tables.parquet, odd_sd.sd],
    ids=lambda make: make.__name__,
)
def test_files(make, seeds, tmp_path):
    each(seeds, lambda rng: inputs_of(make(rng), tmp_path))


@seeds
def test_values_in_memory(seeds):
    def one(rng):
        cells, right, wrong = odd_lists.values(rng)
        rows, rejects = read_inputs(cells)
        found = dict(rows["index", "sequence"].rows())
        assert sorted([*found, *rejects["index"]]) == list(range(len(cells)))
        assert found.items() >= right.items()
        assert wrong <= set(rejects["index"])

    each(seeds, one)


@seeds
@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_frames(kind, seeds):
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency: only its users have it")

    def one(rng):
        table, right, wrong = odd_tables.frame(rng)
        if kind == "pandas":
            cells = {series.name: pandas.Series(series.to_list(), dtype=object) for series in table.iter_columns()}
            table = pandas.DataFrame(cells)
        rows, rejects = read_inputs(table)
        found = dict(rows["index", "sequence"].rows())
        assert sorted([*found, *rejects["index"]]) == list(range(len(table)))
        assert found.items() >= {i: sequence for i, (sequence, _) in right.items()}.items()
        assert wrong <= set(rejects["index"])
        named(table)
        spec = (
            f"{rng.choice(['class', 'class-if-known', 'value', 'value-if-known', 'token'])}:{rng.choice(rows.columns)}"
        )
        try:
            source = label_columns(rows, [spec], domain_of("protein"))
            for index, sequence in found.items():
                labelled(source, index, sequence)
        except IsotraceError as error:
            refusal(error)

    each(seeds, one)


def reading(text: str) -> Reading:
    elements = tuple((i,) for i in range(len(text)))
    return Reading(text, (None,) * len(elements), None, elements)


def labelled(source, index: int, text: str):
    try:
        labels = source.label(index, reading(text))
    except IsotraceError as error:
        refusal(error)
        return None
    assert len(labels.numbers) == len(source.concepts)
    assert not np.isinf(labels.numbers).any()
    return labels


@seeds
@pytest.mark.parametrize("make", [odd_concepts.patterns, odd_concepts.labels], ids=lambda make: make.__name__)
def test_concept_files(make, seeds, tmp_path):
    def one(rng):
        case = make(rng)
        try:
            source = read_concept_file(case.write(tmp_path), domain_of("protein"))
        except IsotraceError as error:
            refusal(error)
            assert case.n is None
            assert not case.right
            return
        assert case.n is None or len(source.concepts) == case.n
        for i, sequence in enumerate([*SMILES, *PROTEINS, *(sequence for sequence, _ in case.right.values())]):
            labels = None if make is odd_concepts.patterns else labelled(source, i, sequence)
            for known, cells in case.right.values():
                assert known != sequence or labels.numbers.tolist() == [*cells.values()]

    each(seeds, one)


@seeds
def test_structures(seeds, tmp_path):
    pytest.importorskip("gemmi", reason="the extra structure")

    def one(rng):
        case = odd_structures.structure(rng)
        try:
            found = read_structure(case.write(tmp_path))
        except IsotraceError as error:
            refusal(error)
            assert not case.right.get(0, ("",))[0]
            return
        assert not case.right or found.chains[0].sequence == case.right[0][0]
        try:
            for sequence in (found.chains[0].sequence, rng.choice(PROTEINS)):
                assert match_chains(found, sequence)
        except IsotraceError as error:
            refusal(error)

    each(seeds, one)


@seeds
def test_texts(seeds):
    """One sequence of any domain, right, damaged or odd."""

    def one(rng):
        sequence = rng.choice([*SMILES, *REACTIONS, *PROTEINS])
        judged(sequence)
        judged(damaged(sequence.encode(), rng).decode(errors="surrogateescape"))
        judged(text(rng, 8))
        judged("".join(rng.choice([*"CNOcn()[]=#@+-123>.%/\\*", *ODD]) for _ in range(rng.randrange(1, 30))))

    each(seeds, one)

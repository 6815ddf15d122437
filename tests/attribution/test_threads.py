"""Two threads, one subject, traces of different inputs: what either gets is what it gets alone."""

import threading

import pytest

import tiny
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.base.runs import dumps
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.report.trace.record import Record
from isotrace.subjects.subject import load_subject

CONFIG = TraceConfig(max_features=12, sizes=(0.5,), n_controls=2, n_nodes=2, n_spellings=0)


@pytest.mark.parametrize("n", [8, pytest.param(50, marks=pytest.mark.nightly)])
def test_two_threads_trace_as_one_does(n, tmp_path):
    subject = load_subject(
        tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path / "m"), domain="molecule", device="cpu"
    )
    dictionary = tiny.random_dictionary(subject)
    jobs = [
        (text, f"mask:{p}") for text in tiny.MOLECULES for p in range(1, int(subject.tokenize([text]).mask.sum()) - 1)
    ]
    first, second = jobs[:n], jobs[-n:]
    assert len(first) == len(second) == n
    assert {text for text, _ in first} != {text for text, _ in second}

    def made(job) -> str:
        found = trace(subject, dictionary, *job, CONFIG)
        return dumps(Record(found, "tiny", "random", FeatureTables(), None).result().summary)

    alone = {job: made(job) for job in {*first, *second}}
    assert len(set(alone.values())) == len(alone)
    together: dict[int, list] = {0: [], 1: []}

    def work(i: int, mine: list) -> None:
        together[i] = [made(job) for job in mine]

    threads = [threading.Thread(target=work, args=(i, mine)) for i, mine in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together[0] == [alone[job] for job in first]
    assert together[1] == [alone[job] for job in second]

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score

from isotrace.annotation.explain.chat import Chat
from isotrace.annotation.explain.labels import explain, make_task, mark, score_detection
from isotrace.base.errors import InputError, RunError
from isotrace.domains.domain import Reading


@dataclass(frozen=True)
class Letter:
    kind: str
    text: str
    start: int
    end: int


def reading(text: str) -> Reading:
    units = [Letter("special", "<s>", 0, 0), *(Letter("atom", c, i, i + 1) for i, c in enumerate(text))]
    return Reading(text, tuple(units), None, ((), *((i,) for i in range(len(text)))))


@dataclass
class Model:
    """Speaks the protocol. It explains every feature by `sentence`, and believes that a feature said to fire on
    `letter X` fires on the texts that hold X."""

    sentence: str = "the letter B"
    wrap: str = "{}"
    faults: list[tuple[int, str]] = field(default_factory=list)  # (status, body), served before any answer
    requests: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, prompt: str) -> str:
        said = re.search(r"fire on this: the letter (\w)", prompt)
        if said is None:
            return self.wrap.format(json.dumps({"explanation": self.sentence}))
        items = re.findall(r"^(\d+)\. (.*)$", prompt, flags=re.MULTILINE)
        return self.wrap.format(json.dumps({"fires": [int(i) for i, text in items if said[1] in text]}))


@pytest.fixture
def model(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    served = Model()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append(body)
            served.keys.append(self.headers["Authorization"])
            if self.path != "/v1/chat/completions":
                status, text = 404, "no such path"
            elif served.faults:
                status, text = served.faults.pop(0)
            else:
                content = served.answer(body["messages"][-1]["content"])
                status, text = 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{served.url}/elsewhere")
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def chat(model: Model, folder, **options) -> Chat:
    return Chat(model.url, "planted", cache=folder / "answers.jsonl", **{"backoff": 0.01, **options})


def data(seed: int = 0, n: int = 120):
    """A feature that fires on every B, and nowhere else; half of the texts hold one."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("ACDEF"), rng.integers(4, 12))) for _ in range(n)]
    texts = [text[:2] + "B" + text[3:] if i % 2 else text for i, text in enumerate(texts)]
    readings = [reading(text) for text in texts]
    ptr = np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts])])
    on = [unit.text == "B" for r in readings for unit in r.units]
    strength = np.where(on, rng.uniform(1, 2, len(on)), 0).astype(np.float32)
    return sparse.csc_matrix(strength[:, None]), readings, ptr, np.arange(n) % 4 < 2


def task(key=(0, 0), **options):
    return make_task(key, *data(), concepts=["letter B, F1 0.9"], seed=0, **options)


def test_a_task_keeps_the_sides_apart_and_matches_lengths():
    activations, readings, ptr, held = data()
    made = make_task((1, 2), activations, readings, ptr, held, concepts=[], seed=0, n_items=20)
    texts = [r.text for r in readings]
    plain = [re.sub(r"«(.):\d+»", r"\1", example) for example in made.examples]
    assert len(plain) == 8
    assert all("«B:" in example for example in made.examples)
    assert all("B" not in text for text in made.silent)
    for shown in (*plain, *made.silent):
        assert any(text == shown and not held[i] for i, text in enumerate(texts))
    fires = [fires for _, fires in made.items]
    assert (len(fires), sum(fires)) == (20, 10)
    assert fires != sorted(fires, reverse=True)
    assert all(fires == ("B" in text) for text, fires in made.items)
    assert all(any(t == text and held[i] for i, t in enumerate(texts)) for text, _ in made.items)
    lengths = {side: sorted(len(text) for text, fires in made.items if fires == side) for side in (True, False)}
    assert np.abs(np.subtract(lengths[True], lengths[False])).max() <= 2
    assert made == make_task((1, 2), activations, readings, ptr, held, concepts=[], seed=0, n_items=20)


def test_weak_activations_are_neither_firing_nor_silent():
    activations, readings, ptr, held = data()
    made = make_task((0, 0), activations, readings, ptr, held, concepts=[], seed=0, threshold=1.5)
    values = activations.toarray().ravel()
    strong = {r.text for r, a, b in zip(readings, ptr, ptr[1:], strict=False) if values[a:b].max() >= 1.5}
    assert {text for text, fires in made.items if fires} <= strong
    with pytest.raises(InputError, match="fires on 0 and is silent on 30 selection sequences"):
        make_task((0, 0), activations, readings, ptr, held, concepts=[], seed=0, threshold=9)


def test_marks_show_tokens_and_strength():
    assert mark(reading("C(=O)O"), [0, 1, 0, 0, 0.42, 0, 0.01]) == "«C:10»(=«O:4»)«O:1»"


def test_the_right_explanation_is_detected_and_a_wrong_one_is_not(model, tmp_path):
    right = explain([task()], chat(model, tmp_path), things="texts")[0]
    assert (right.text, right.balanced_accuracy, right.reason, right.n_items) == ("the letter B", 1, None, 20)
    assert 0.5 < right.low < right.balanced_accuracy
    assert right.q < 0.05
    model.sentence = "the letter C"
    wrong = explain([task((0, 1))], chat(model, tmp_path / "other"), things="texts")[0]
    assert wrong.text == "the letter C"
    assert wrong.low <= 0.5
    assert "does not tell" in wrong.reason
    # What the model was shown: marks and concepts in the one request, neither labels nor marks in the others.
    first, *rest = (request["messages"][-1]["content"] for request in model.requests[:3])
    assert "«B:" in first
    assert "letter B, F1 0.9" in first
    assert all("«" not in text and "F1" not in text for text in rest)
    assert model.requests[0]["model"] == "planted"


def test_q_is_over_all_features_asked(model, tmp_path):
    # 5 + 5 items: p = 1 / 252 each. Alone it passes; beside 30 features that fail it does not.
    small = [task((0, i), n_items=10) for i in range(31)]
    alone = explain(small[:1], chat(model, tmp_path / "a"), things="texts")
    assert (alone[0].p, alone[0].q, alone[0].reason) == (pytest.approx(1 / 252), pytest.approx(1 / 252), None)
    answers = iter(["the letter B", *["the letter Z"] * 30])
    asked = model.answer
    model.answer = lambda prompt: (
        asked(prompt) if "fire on this" in prompt else json.dumps({"explanation": next(answers)})
    )
    found = explain(small, chat(model, tmp_path / "b"), things="texts", workers=1)
    assert found[0].q == pytest.approx(31 / 252)
    assert found[0].low > 0.5
    assert "q of detection" in found[0].reason
    assert all(one.p == 1 for one in found[1:])


@pytest.mark.parametrize("wrap", ["```json\n{}\n```", "<think>Maybe {{1}} or {{}}.</think>\nSo: {} I hope.", "  {}"])
def test_answers_are_found_in_what_surrounds_them(model, tmp_path, wrap):
    model.wrap = wrap
    assert explain([task()], chat(model, tmp_path), things="texts")[0].reason is None


@pytest.mark.parametrize(
    ("sentence", "fires", "reason"),
    [
        ("", None, "no sentence"),
        ("x" * 500, None, "no sentence"),
        ("the letter B", '{"fires": [0]}', "no list of numbers from 1 to 10"),
        ("the letter B", '{"fires": ["1"]}', "no list of numbers"),
        ("the letter B", '{"fires": [true]}', "no list of numbers"),
        ("the letter B", "I cannot tell.", "the answer holds no 'fires'"),
        ("the letter B", "[1, 2", "the answer holds no 'fires'"),
    ],
)
def test_a_malformed_answer_leaves_the_feature_without_a_label(model, tmp_path, sentence, fires, reason):
    model.sentence, asked = sentence, model.answer
    if fires is not None:
        model.answer = lambda prompt: fires if "fire on this" in prompt else asked(prompt)
    found = explain([task()], chat(model, tmp_path), things="texts")[0]
    assert reason in found.reason
    assert np.isnan([found.p, found.q, found.low]).all()


def test_an_interrupted_run_asks_nothing_twice(model, tmp_path):
    tasks = [task((0, i)) for i in range(3)]
    tasks = [tasks[0], *(make_task((0, i), *data(i), concepts=[], seed=i) for i in (1, 2))]
    first = chat(model, tmp_path, retries=0)
    done = explain(tasks[:1], first, things="texts")
    model.faults = [(500, "down")] * 9
    with pytest.raises(RunError, match="answers 500: 'down', 1 times: answers so far are kept"):
        explain(tasks, chat(model, tmp_path, retries=0), things="texts", workers=1)
    model.faults.clear()
    cache = tmp_path / "answers.jsonl"
    lines = cache.read_text().splitlines()
    assert len(lines) == 3
    cache.write_text("\n".join(lines) + '\n{"request": "ab')
    before = len(model.requests)
    resumed = explain(tasks, chat(model, tmp_path), things="texts")
    assert len(model.requests) == before + 6
    assert resumed[0].balanced_accuracy == done[0].balanced_accuracy
    again = explain(tasks, chat(model, tmp_path), things="texts")
    assert len(model.requests) == before + 6
    assert again == resumed
    # Another model is another question.
    Chat(model.url, "other", cache=cache).ask([{"role": "user", "content": "hello"}])
    assert len(model.requests) == before + 7


def test_passing_faults_are_retried_and_lasting_ones_are_errors(model, tmp_path):
    model.faults = [(503, "busy"), (429, "slow down")]
    assert explain([task()], chat(model, tmp_path), things="texts")[0].reason is None
    assert len(model.requests) == 5
    hello = [{"role": "user", "content": "hello"}]
    for fault, message in [
        ((401, "who?"), "set the environment variable MY_KEY"),
        ((302, ""), "give the base URL"),
        ((400, "no model"), "check that it offers the model 'planted'"),
        ((200, "<html>"), "does not speak the OpenAI chat protocol"),
        ((200, '{"choices": []}'), "does not speak"),
    ]:
        model.faults, before = [fault], len(model.requests)
        with pytest.raises(RunError, match=message):
            chat(model, tmp_path, key_variable="MY_KEY").ask(hello)
        assert len(model.requests) == before + 1
    model.faults = [(200, '{"choices": [{"message": {"content": null}}]}')]
    assert chat(model, tmp_path).ask(hello) == ""


def test_an_endpoint_that_is_not_there(tmp_path, model):
    with pytest.raises(RunError, match="give the base URL"):
        Chat(f"{model.url}/wrong", "m", cache=tmp_path / "a").ask([])
    with pytest.raises(RunError, match="cannot be reached"):
        Chat("http://127.0.0.1:9/v1", "m", cache=tmp_path / "a", retries=1, backoff=0.01).ask([])
    for url in ("localhost:8000", "file:///etc/hosts", "http://"):
        with pytest.raises(InputError, match="no endpoint"):
            Chat(url, "m", cache=tmp_path / "a")


def test_the_key_is_sent_and_kept_nowhere(model, tmp_path, monkeypatch):
    hello = [{"role": "user", "content": "hello"}]
    chat(model, tmp_path).ask(hello)
    monkeypatch.setenv("MY_KEY", "sesame")
    chat(model, tmp_path, key_variable="MY_KEY", temperature=None).ask(hello)
    assert model.keys == [None, "Bearer sesame"]
    assert "temperature" not in model.requests[1]
    model.faults = [(401, "no")]
    with pytest.raises(RunError) as caught:
        chat(model, tmp_path, key_variable="MY_KEY").ask([{"role": "user", "content": "x"}])
    assert "sesame" not in str(caught.value) + (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize(("hits", "false"), [(10, 0), (9, 3), (5, 5), (0, 10), (10, 10)])
def test_detection_scores(hits, false):
    fires = np.repeat([True, False], 10)
    said = np.concatenate([np.arange(10) < hits, np.arange(10) < false])
    accuracy, low, high, p = score_detection(fires, said)
    assert accuracy == pytest.approx(balanced_accuracy_score(fires, said))
    assert 0 <= low <= accuracy <= high <= 1
    assert high - low > 0.1
    assert (p < 0.05) == (hits - false > 4)


@pytest.mark.nightly
def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    fires, covered = np.repeat([True, False], 10), []
    for _ in range(2000):
        said = rng.random(20) < np.where(fires, 0.8, 0.3)
        _, low, high, _ = score_detection(fires, said)
        covered.append(low <= 0.75 <= high)
    assert 0.93 < np.mean(covered) < 0.99

"""save_pretrained, push_to_hub and hf: sources, against a small local server that speaks the hub's protocol."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.hub import card, push_to_hub, save_pretrained
from isotrace.dictionaries.saving import load_dictionary, read_record

DICTIONARY = Path(__file__).parents[2] / "data" / "interop" / "reverse" / "dictionaries" / "sae_topk"
COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """One repository, held in `server.files`."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.reply({"url": f"{self.server.url}/org/name", "name": "org/name"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply(
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/org/name/commit/{COMMIT}"}
            )
        else:
            self.reply({}, 200)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name/tree"):
            self.reply([{"type": "file", "path": n, "size": len(b), "oid": "0"} for n, b in self.server.files.items()])
        elif path.startswith("/api/models/org/name"):
            found = [{"rfilename": name} for name in self.server.files]
            self.reply(
                {"id": "org/name", "sha": COMMIT, "siblings": found, "private": False, "tags": [], "downloads": 0}
            )
        elif (name := path.rpartition(f"/{COMMIT}/")[2]) in self.server.files:
            data = self.server.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", hashlib.sha256(data).hexdigest())
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
        else:
            self.reply({"error": "not found"}, 404)

    do_HEAD = do_GET  # noqa: N815 (the name http.server asks for)

    def reply(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.files = f"http://127.0.0.1:{server.server_port}", {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_saved_with_a_card_and_loaded_again(tmp_path):
    record = read_record(DICTIONARY)
    dictionary = load_dictionary(DICTIONARY)
    save_pretrained(dictionary, tmp_path, record.subject, dtype=torch.float32, training={"tokens": 1})
    again = load_dictionary(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), dictionary.parameters(), strict=True))
    text = (tmp_path / "README.md").read_text()
    assert text == card(read_record(tmp_path))
    assert "library_name: isotrace" in text
    assert record.subject.weights_sha256 in text
    with pytest.raises(DictionaryError, match="is no dictionary"):
        load_dictionary(tmp_path / "nothing")


def test_pushed_and_loaded_from_the_hub_and_then_without_it(hub, tmp_path, monkeypatch):
    """Only the address is another; its client reads it from `constants`."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder, dictionary = tmp_path / "dictionary", load_dictionary(DICTIONARY)
    save_pretrained(dictionary, folder, read_record(DICTIONARY).subject, dtype=torch.float32, training={})
    (folder / "notes.txt").write_text("private")
    assert push_to_hub(folder, "org/name", private=True).endswith(COMMIT)
    assert set(hub.files) == {"README.md", "dictionary.json", "weights.safetensors"}
    pulled = load_dictionary("hf:org/name")
    assert all(torch.equal(a, b) for a, b in zip(pulled.parameters(), dictionary.parameters(), strict=True))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.files.clear()
    assert load_dictionary("hf:org/name").fingerprint() == dictionary.fingerprint()
    with pytest.raises(DictionaryError, match="cannot get 'org/other' from the hub"):
        load_dictionary("hf:org/other")
    with pytest.raises(DictionaryError, match="cannot push to 'org/name'"):
        push_to_hub(folder, "org/name", private=True)
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(DictionaryError, match="truncated"):
        push_to_hub(folder, "org/name", private=True)

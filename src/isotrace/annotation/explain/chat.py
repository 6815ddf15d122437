"""Asking a language model over the OpenAI chat protocol, each question once.

`POST {url}/chat/completions`, by the standard library alone. Answers go to a JSONL file as they come.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from isotrace.base.errors import InputError, RunError
from isotrace.base.settings import whole_number

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0
MAX_BYTES = 10_000_000


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Chat:
    """One model at one endpoint, safe to share between threads.

    url: the base that clients of this protocol take, for instance `http://localhost:8000/v1`.
    key_variable: environment variable that holds the key; where it is not set, none is sent. It is written nowhere.
    cache: JSONL file of answers by the SHA-256 of url and request. A line cut off by a kill is passed over.
    temperature: None leaves it out, for models that refuse it. timeout: seconds of one attempt; retries after the first
        wait backoff, 2 · backoff, … seconds, or what the server asks for.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: Path,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float | None = 0.0,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 1.0,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise InputError(f"{url!r} is no endpoint: give its base URL, such as http://localhost:8000/v1.")
        self.url, self.model, self.cache, self.key_variable = url.rstrip("/"), model, cache, key_variable
        self.temperature, self.timeout, self.retries, self.backoff = temperature, timeout, retries, backoff
        self._opener = build_opener(_NoRedirect)
        self._lock = threading.Lock()
        self._answers = self._load()

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """The model's answer, from the cache if it was given before; empty if the model declined.

        Raises RunError if the endpoint cannot be reached, refuses, or does not speak the protocol.
        """
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._answers:
                return self._answers[key]
        answer = self._content(self._post(body))
        if answer:
            with self._lock:
                self._answers[key] = answer
                with self.cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"request": key, "model": self.model, "answer": answer}) + "\n")
        return answer

    def _load(self) -> dict[str, str]:
        found = {}
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        with self.cache.open("a+", encoding="utf-8") as file:
            file.seek(0)
            text = file.read()
            if text and not text.endswith("\n"):
                # What is appended next must not run on from half a line.
                file.write("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                found[entry["request"]] = str(entry["answer"])
            except (ValueError, LookupError, TypeError):
                continue
        return found

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "isotrace"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode()
        fault = ""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt
            try:
                request = Request(f"{self.url}/chat/completions", data=data, headers=headers, method="POST")
                with self._opener.open(request, timeout=self.timeout) as response:
                    return response.read(MAX_BYTES)
            except HTTPError as error:
                with error:
                    fault = f"answers {error.code}: {error.read(2_000).decode(errors='replace').strip()[:200]!r}"
                    asked = error.headers.get("Retry-After", "")
                if error.code not in RETRIED:
                    raise RunError(f"{self.url} {fault}; {self._advice(error.code)}") from None
                seconds = whole_number(asked)
                wait = wait if seconds is None else max(0, seconds)
            except (URLError, HTTPException, OSError) as error:
                fault = f"cannot be reached ({getattr(error, 'reason', error)})"
            if attempt < self.retries:
                time.sleep(min(wait, LONGEST_WAIT))
        raise RunError(f"{self.url} {fault}, {self.retries + 1} times: answers so far are kept, run again to go on.")

    def _advice(self, code: int) -> str:
        if code in (401, 403):
            return f"set the environment variable {self.key_variable} to a valid key."
        if code == 404 or 300 <= code < 400:
            return "give the base URL (such as http://localhost:8000/v1) and a model it offers."
        return f"check that it offers the model {self.model!r}."

    def _content(self, data: bytes) -> str:
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
            return content if isinstance(content, str) else ""
        except (ValueError, LookupError, TypeError):
            raise RunError(
                f"{self.url} does not speak the OpenAI chat protocol (it answered {data[:80]!r}): give its base URL."
            ) from None

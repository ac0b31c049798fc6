"""Requests to a server in JSON: repeated where it is busy, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from lora_kit.runtime.errors import EvaluationError, first_line

# A server that is busy, restarts, or is behind a gateway that does.
BUSY = (408, 429, 500, 502, 503, 504)
# A request that the server does not accept, whatever the others.
REFUSED = (400, 413, 422)
# Seconds before the second try; doubled before each further one.
BACKOFF = 0.5
# Seconds to connect, and between two parts of an answer.
TIMEOUT = (10, 600)
AGAIN = "Fix: start it again, and repeat the command: what was answered is not asked again"

T = TypeVar("T")
R = TypeVar("R")


class RefusedError(Exception):
    """Error for a request that the server does not accept; others may be accepted."""


class Connection:
    """Connection to a server, with as many requests at a time as it has slots."""

    def __init__(self, url: str, slots: int, tries: int, key: str = ""):
        """Prepare the connection; nothing is sent yet.

        Args:
            url: beginning of all addresses.
            slots: largest number of requests at a time.
            tries: largest number of tries of a request.
            key: key that is sent with each request; empty for none.
        """
        self.url = url.rstrip("/")
        self.slots = slots
        self._pool = ThreadPoolExecutor(slots)
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._session = requests.Session()
        # A proxy of the environment is not for a server that is named.
        self._session.trust_env = False
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"
        retry = Retry(
            total=tries - 1,
            backoff_factor=BACKOFF,
            status_forcelist=BUSY,
            allowed_methods=None,  # a POST asks here, and changes nothing
            raise_on_status=False,
        )
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=slots)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def close(self) -> None:
        """Close the connection; requests that are not sent yet are dropped."""
        self._pool.shutdown(cancel_futures=True)
        self._session.close()

    def is_ready(self, path: str) -> bool:
        """Return true if the server answers with success, now and at the first try."""
        with requests.Session() as once:
            once.trust_env = False
            try:
                return once.get(f"{self.url}{path}", timeout=TIMEOUT[0]).ok
            except requests.RequestException:
                return False

    def each(self, ask: Callable[[T, int], R], values: Sequence[T]) -> list[R]:
        """Return what `ask` returns for each value and a slot that is free, in their order."""

        def with_slot(value: T) -> R:
            with self._slot() as slot:
                return ask(value, slot)

        return list(self._pool.map(with_slot, values))

    @contextmanager
    def _slot(self) -> Iterator[int]:
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            RefusedError: if the server does not accept this request.
            EvaluationError: if it does not answer, or answers with another error.
        """
        return self._ask("POST", path, body)

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer to a request without a body.

        Raises:
            RefusedError: if the server does not accept this request.
            EvaluationError: if it does not answer, or answers with another error.
        """
        return self._ask("GET", path, None)

    def _ask(self, method: str, path: str, body: Any) -> dict[str, Any]:
        try:
            response = self._session.request(
                method, f"{self.url}{path}", json=body, timeout=TIMEOUT
            )
        except requests.RequestException as error:
            raise EvaluationError(
                f"{self.url}: does not answer (got {first_line(error)}). {AGAIN}"
            ) from error
        if response.status_code in REFUSED:
            raise RefusedError(f"status {response.status_code}: {_message(response)}")
        if not response.ok:
            raise EvaluationError(
                f"{self.url}{path}: status {response.status_code} (got {_message(response)}). Fix: "
                "look at the server's log; check address, name of the model, and key"
            )
        try:
            value = response.json()
        except ValueError as error:
            raise EvaluationError(
                f"{self.url}{path}: not an answer in JSON (got {response.text[:80]!r}). Fix: check "
                "the address"
            ) from error
        if not isinstance(value, dict):
            raise EvaluationError(
                f"{self.url}{path}: not an answer of such a server (got {type(value).__name__}). "
                "Fix: check the address"
            )
        return value


def _message(response: requests.Response) -> str:
    """Return the server's message, in the forms that servers have for it."""
    try:
        value = response.json()
    except ValueError:
        return response.text[:200] or "no message"
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]

"""Tokenization in worker processes, for data that takes long.

Rendering chat templates and labelling tokens is Python, of which one process runs one thread at a
time. Workers receive blocks of rows and return their examples; reading, counting and writing stay
where they are, in the order of the rows.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from lora_kit.data.rows import Row
from lora_kit.data.supervision import Example
from lora_kit.runtime.machine import cores

# Function that returns the examples of each row of a block.
Encode = Callable[[Sequence[Row]], Iterable[Sequence[Example]]]
# A block of rows, and the index of each row's source.
Block = tuple[list[Row], list[int]]
Worker = subprocess.Popen[bytes]
# One process reads rows and writes examples as fast as about this many workers make them.
MAX_WORKERS = 8
COMMAND = ("-P", "-m", "lora_kit.data.workers")


def encode_in_workers(
    blocks: Iterator[Block], encode: Encode
) -> Iterator[tuple[Block, Iterable[Sequence[Example]]]]:
    """Yield each block with the examples of its rows, in order.

    A block that a worker could not encode is encoded here, which raises the error where the block
    is reached; a worker that ended is done without.

    Args:
        blocks: blocks of rows; a few more than those yielded are read.
        encode: function that tokenizes a block of rows; it must be picklable.
    """
    count, pickled = min(cores(), MAX_WORKERS), pickle.dumps(encode)
    waiting: deque[tuple[Block, Future[Any]]] = deque()
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker()) for _ in range(count)]
        threads = ThreadPoolExecutor(count)
        stack.callback(threads.shutdown, cancel_futures=True)
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in workers:
            threads.submit(_begin, worker, pickled, free)
        for block in blocks:
            waiting.append((block, threads.submit(_ask, workers, free, block[0])))
            if len(waiting) > 2 * count:
                yield _first(waiting, encode)
        while waiting:
            yield _first(waiting, encode)


def _first(
    waiting: deque[tuple[Block, Future[Any]]], encode: Encode
) -> tuple[Block, Iterable[Sequence[Example]]]:
    block, answer = waiting.popleft()
    found = answer.result()
    return block, encode(block[0]) if found is None else found


@contextmanager
def _worker() -> Iterator[Worker]:
    """Start a process that answers blocks of rows until its input ends."""
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        # The workers use all cores already.
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, *COMMAND],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # An interrupt reaches this process, whose end the workers notice.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _begin(worker: Worker, encode: bytes, free: SimpleQueue[Worker]) -> None:
    """Send the pickled function to a worker, which takes it after its imports."""
    if _send(worker, encode):
        free.put(worker)


def _ask(workers: Sequence[Worker], free: SimpleQueue[Worker], rows: Sequence[Row]) -> Any:
    """Return the examples of each row; `None` if a worker raised an error, or all have ended."""
    while any(worker.poll() is None for worker in workers):
        try:
            worker = free.get(timeout=1)
        except Empty:
            continue
        assert worker.stdout
        if _send(worker, rows):
            try:
                found = pickle.load(worker.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                worker.kill()
                worker.wait()
            else:
                free.put(worker)
                return found
    return None


def _send(worker: Worker, value: object) -> bool:
    """Send a value; return False if the worker has ended."""
    assert worker.stdin
    try:
        pickle.dump(value, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
    except OSError:
        worker.kill()
        worker.wait()
        return False
    return True


def _answer_blocks() -> None:
    """Answer blocks of rows on stdin with lists of examples on stdout, or `None` for an error."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print, native code too
    encode: Encode = pickle.loads(pickle.load(requests))
    while True:
        try:
            rows = pickle.load(requests)
        except EOFError:
            return
        try:
            found = list(encode(rows))
        except Exception:
            # The parent meets the error itself, in the order of the rows.
            found = None
        pickle.dump(found, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    _answer_blocks()

"""Measuring in a process of its own: what dies, hangs or fills the memory there costs nothing here."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Receive = Callable[[float], Any]
"""Waits so many seconds for the next answer; a string says why there will be none."""


@contextmanager
def own_process(work: Callable[..., None], *arguments: object) -> Iterator[Receive]:
    """Run `work(*arguments, connection)`, which sends answers, in a new process that ends with the block."""
    context = multiprocessing.get_context("spawn")
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*arguments, sender), daemon=True)
    process.start()
    sender.close()
    try:
        yield lambda seconds: receive(answers, seconds)
    finally:
        process.kill()
        process.join()
        answers.close()


def receive(answers: Connection, seconds: float) -> Any:
    """The next answer, or why there will be none."""
    if not answers.poll(seconds):
        return f"no answer within {seconds:g} s"
    try:
        return answers.recv()
    except EOFError:
        return "its process died, most likely for want of memory"

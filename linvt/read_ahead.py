"""Results made in the background before they are asked for, in order."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def read_ahead(
    make: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, depth: int, threads: int = 1
) -> Generator[ResultT, None, None]:
    """`make(item)` of every item, in order, made by background threads up to `depth` ahead of their use.

    An exception of `make` is raised where its result would have come. Closing the iterator stops the threads.
    """
    waiting: list[Future[ResultT]] = []
    executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="read-ahead")
    try:
        for item in items:
            waiting.append(executor.submit(make, item))
            if len(waiting) > depth:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)

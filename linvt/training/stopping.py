"""SIGTERM, as clusters send it before they take a machine away: a wish to stop, granted at the next step's end."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.received = False


@contextmanager
def noticing_sigterm(on_signal: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Within it, the first SIGTERM is noted (and calls `on_signal`); a second one ends the process, as usual.

    Only the main thread can listen; in any other nothing is ever noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        request.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logger.warning("asked to stop (SIGTERM): a checkpoint follows at the end of this step")
        on_signal()

    before: Any = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)

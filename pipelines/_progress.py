"""Progress of a long job: a bar on a terminal, a line now and then anywhere else. Always on stderr."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts what is done of `total`; a context manager."""

    def __init__(self, total: int, *, unit: str) -> None:
        self._total, self._done, self._unit = total, 0, unit
        self._started_at = self._last_line_at = time.monotonic()
        self._bar = tqdm(total=total, unit=unit, file=sys.stderr) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._log("")

    def advance(self, count: int, note: str = "") -> None:
        """`count` more are done; `note` is shown beside the numbers."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line_at >= _SECONDS_BETWEEN_LINES:
            self._log(note)

    def _log(self, note: str) -> None:
        self._last_line_at = time.monotonic()
        rate = self._done / max(self._last_line_at - self._started_at, 1e-9)
        logger.info(
            "%d/%d %ss, %.2f %ss/s%s", self._done, self._total, self._unit, rate, self._unit, note and f", {note}"
        )

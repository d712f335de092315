"""Progress of a long job: a bar on a terminal, JSON lines anywhere else. Always on stderr."""

import json
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0
# The time left is told from the pace of late: the first minutes of a job say little about the rest.
_WINDOW_S = 300.0


class Progress:
    """Counts what is done of `total`; a context manager."""

    def __init__(self, total: int, *, unit: str) -> None:
        self._total, self._done, self._unit = total, 0, unit
        self._started_at = self._last_line_at = time.monotonic()
        self._past = deque([(self._started_at, 0)])
        self._facts: dict[str, Any] = {}
        self._bar = tqdm(total=total, unit=unit, file=sys.stderr) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._print_line()

    def advance(self, count: int, **facts: Any) -> None:
        """`count` more are done; the facts are shown beside the numbers."""
        self._done += count
        self._facts = facts
        now = time.monotonic()
        self._past.append((now, self._done))
        while now - self._past[0][0] > _WINDOW_S:
            self._past.popleft()
        if self._bar is not None:
            self._bar.set_postfix(facts, refresh=False)
            self._bar.update(count)
        elif now - self._last_line_at >= _SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line_at = now = time.monotonic()
        then, done_then = self._past[0]
        per_s = (self._done - done_then) / max(now - then, 1e-9)
        left_s = round((self._total - self._done) / per_s) if per_s > 0 else None
        line = {
            f"{self._unit}s": self._done,
            "of": self._total,
            "per_s": round(per_s, 3),
            "elapsed_s": round(now - self._started_at),
            "left_s": left_s,
            **self._facts,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)

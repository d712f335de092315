"""Tokens in, text out: as soon as no later token can change it, and never a stop sequence."""

from collections.abc import Callable, Collection, Sequence


class TextStream:
    """The text of one answer as its tokens come; it ends before the first stop sequence."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stops: Collection[str], emit: Callable[[str], None]
    ) -> None:
        self._decode, self._stops, self._emit = decode, stops, emit
        self._ids: list[int] = []
        self._num_emitted = 0
        self.text, self.stopped = "", False

    def put(self, token_id: int) -> bool:
        """Whether a stop sequence has come. What might become one is held back."""
        self._ids.append(token_id)
        self.text = self._decode(self._ids)
        found = [self.text.find(stop) for stop in self._stops if stop in self.text]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        self._emit_up_to(len(self.text) if self.stopped else self._num_certain())
        return self.stopped

    def end(self) -> None:
        """Emits what was held back."""
        self._emit_up_to(len(self.text))

    def _num_certain(self) -> int:
        # A character cut in the middle decodes to U+FFFD until its last byte comes.
        certain = len(self.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        for stop in self._stops:
            begun = next((n for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n])), 0)
            certain = min(certain, len(self.text) - begun)
        return certain

    def _emit_up_to(self, end: int) -> None:
        if end > self._num_emitted:
            self._emit(self.text[self._num_emitted : end])
            self._num_emitted = end

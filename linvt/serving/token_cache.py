"""A bounded cache of encoded videos: the second question about a video skips decoding, shots and the encoder."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class TokenCache(Generic[ValueT]):
    """Least-recently-used values under `max_bytes`, each made at most once at a time.

    Requests that ask for one missing key together wait for a single making of it; a making that fails is forgotten, so
    the next request tries again. Lives on one event loop.
    """

    def __init__(self, max_bytes: int, size_bytes: Callable[[ValueT], int]) -> None:
        self._max_bytes, self._size_bytes = max_bytes, size_bytes
        self._values: OrderedDict[Hashable, ValueT] = OrderedDict()
        self._makings: dict[Hashable, asyncio.Task[ValueT]] = {}
        self.held_bytes = self.hits = self.misses = 0

    async def get(self, key: Hashable, make: Callable[[], Awaitable[ValueT]]) -> ValueT:
        """The value of `key`; when missing, the result of `make()`, which is called at once, kept if it fits at all."""
        if key in self._values:
            self.hits += 1
            self._values.move_to_end(key)
            return self._values[key]
        if key in self._makings:
            self.hits += 1
        else:
            self.misses += 1
            self._makings[key] = asyncio.ensure_future(self._keep(key, make()))
        # Shielded: one waiter's disconnect must not cancel the work that the others wait for.
        return await asyncio.shield(self._makings[key])

    async def _keep(self, key: Hashable, making: Awaitable[ValueT]) -> ValueT:
        try:
            value = await making
        finally:
            del self._makings[key]
        size_bytes = self._size_bytes(value)
        if size_bytes <= self._max_bytes:
            self._values[key] = value
            self.held_bytes += size_bytes
            while self.held_bytes > self._max_bytes:
                _, dropped = self._values.popitem(last=False)
                self.held_bytes -= self._size_bytes(dropped)
        return value

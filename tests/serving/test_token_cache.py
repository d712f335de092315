"""The cache of encoded videos: bounded, made once, and no failure is remembered."""

import asyncio

import pytest

from linvt.serving.token_cache import TokenCache


def _maker(value: bytes, made: list[bytes]):
    async def make() -> bytes:
        await asyncio.sleep(0)
        made.append(value)
        return value

    return make


def test_the_least_recently_used_goes_first():
    async def scenario():
        cache, made = TokenCache[bytes](6, len), []
        for key in (b"aa", b"bb", b"cc", b"aa", b"dd", b"aa", b"bb"):
            assert await cache.get(key, _maker(key, made)) == key
            assert cache.held_bytes <= 6
        assert made == [b"aa", b"bb", b"cc", b"dd", b"bb"]
        assert (cache.hits, cache.misses, cache.held_bytes) == (2, 5, 6)

    asyncio.run(scenario())


def test_a_value_larger_than_the_cache_is_returned_but_not_kept():
    async def scenario():
        cache, made = TokenCache[bytes](3, len), []
        await cache.get("small", _maker(b"x", made))
        assert await cache.get("large", _maker(b"12345", made)) == b"12345"
        assert cache.held_bytes == 1
        await cache.get("small", _maker(b"x", made))
        assert made == [b"x", b"12345"]

    asyncio.run(scenario())


def test_requests_that_come_together_share_one_making():
    async def scenario():
        cache, made = TokenCache[bytes](10, len), []
        assert await asyncio.gather(*(cache.get("k", _maker(b"v", made)) for _ in range(5))) == [b"v"] * 5
        assert made == [b"v"]

    asyncio.run(scenario())


def test_one_client_that_leaves_does_not_spoil_it_for_the_others():
    async def scenario():
        cache, made = TokenCache[bytes](10, len), []
        first = asyncio.ensure_future(cache.get("k", _maker(b"v", made)))
        second = asyncio.ensure_future(cache.get("k", _maker(b"v", made)))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"v"
        assert made == [b"v"]

    asyncio.run(scenario())


def test_a_failure_is_told_and_forgotten():
    async def scenario():
        cache, made = TokenCache[bytes](10, len), []

        async def fail() -> bytes:
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            await cache.get("k", fail)
        assert await cache.get("k", _maker(b"v", made)) == b"v"

    asyncio.run(scenario())

"""One extraction at a time: on a local disk, in memory, and on a server that speaks S3."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from linvt.extraction import lock
from linvt.extraction.lock import exclusive
from linvt.shards.layout import LOCK
from linvt.shards.storage import Storage, open_storage

_HOLD = (
    "import sys, time; from linvt.extraction.lock import exclusive; from linvt.shards.storage import open_storage\n"
    "with exclusive(open_storage(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)
_RACE = """
import sys
from linvt.extraction.lock import exclusive
from linvt.shards.storage import open_storage
storage = open_storage(sys.argv[1])
for start in sys.stdin:
    try:
        with exclusive(storage, renewed_every_s=0.05):
            print("won", flush=True)
            sys.stdin.readline()
        print("released", flush=True)
    except ValueError:
        print("refused", flush=True)
"""
_ABANDONED = json.dumps({"owner": "process 1 on afar", "token": "t", "renewed": 0.0, "machine": "afar"}).encode()


@pytest.fixture(params=["disk", "s3"])
def storage(request, tmp_path):
    if request.param == "disk":
        return open_storage(str(tmp_path / "out"))
    return open_storage(f"s3://{request.getfixturevalue('s3').make_bucket()}/out")


@pytest.fixture
def on_s3(s3):
    yield open_storage(f"s3://{s3.make_bucket()}/out")
    s3.ignore_conditions(False)
    s3.show()


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it never happened"


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(storage):
    command = [sys.executable, "-c", _HOLD, storage.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ValueError, match=rf"out is in use by process {holder.pid} on "), exclusive(storage):
            pytest.fail("two at once")
        holder.kill()
    with exclusive(storage):
        pass
    with exclusive(storage):
        pass


@pytest.mark.parametrize("before", [None, _ABANDONED], ids=["free", "abandoned"])
def test_of_two_processes_that_start_at_once_on_s3_one_wins(on_s3, before):
    command = [sys.executable, "-c", _RACE, on_s3.uri]
    with ExitStack() as started:
        racers = [
            started.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            for _ in range(2)
        ]
        for _ in range(5):
            if before is not None:
                on_s3.write(LOCK, before)
            for racer in racers:
                racer.stdin.write("start\n")
            outcomes = [racer.stdout.readline().strip() for racer in racers]
            assert sorted(outcomes) == ["refused", "won"]
            winner = racers[outcomes.index("won")]
            winner.stdin.write("release\n")
            assert winner.stdout.readline().strip() == "released"
        for racer in racers:
            racer.stdin.close()


@pytest.mark.parametrize("before", [None, _ABANDONED], ids=["free", "abandoned"])
def test_a_rival_between_the_look_and_the_put_keeps_the_lock(on_s3, monkeypatch, before):
    rival = _ABANDONED.replace(b"afar", b"rival")
    if before is not None:
        on_s3.write(LOCK, before)
    put_if = Storage._put_if

    def rival_comes_first(self: Storage, *put: Any) -> None:
        self.write(LOCK, rival)
        put_if(self, *put)

    monkeypatch.setattr(Storage, "_put_if", rival_comes_first)
    with (
        pytest.raises(ValueError, match="in use by process 1 on rival"),
        exclusive(on_s3, renewed_every_s=0.02),
    ):
        pytest.fail("two at once")
    assert on_s3.read(LOCK) == rival


def test_an_owner_whose_clock_is_wrong_is_no_abandoned_one(on_s3):
    finished = threading.Event()

    def renew() -> None:
        count = 0
        while not finished.wait(0.01):
            count += 1
            on_s3.write(LOCK, _ABANDONED.replace(b'"t"', b'"t%d"' % count))

    on_s3.write(LOCK, _ABANDONED)
    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(ValueError, match="on afar"), exclusive(on_s3, renewed_every_s=0.5):
            pytest.fail("two at once")
    finally:
        finished.set()
        renewing.join()


def test_an_owner_that_lost_its_lock_is_told_and_leaves_the_new_ones_alone(on_s3):
    with exclusive(on_s3, renewed_every_s=0.02) as check:
        check()
        on_s3.write(LOCK, _ABANDONED)
        with pytest.raises(RuntimeError, match="the lock of this extraction was taken by process 1 on afar"):
            _wait_until(lambda: check() is not None)
    assert on_s3.read(LOCK) == _ABANDONED


def test_a_store_that_is_away_for_a_moment_costs_no_lock(on_s3, s3, caplog):
    with exclusive(on_s3, renewed_every_s=0.02) as check:
        s3.hide(on_s3.root.split("/")[0])
        _wait_until(lambda: "no such bucket" in caplog.text)
        s3.show()
        before = on_s3.read(LOCK)
        _wait_until(lambda: on_s3.read(LOCK) != before)
        check()
    assert on_s3.size_bytes(LOCK) is None


def test_an_owner_that_cannot_renew_for_long_stops(on_s3, s3, monkeypatch):
    with exclusive(on_s3, renewed_every_s=0.02) as check:
        s3.hide(on_s3.root.split("/")[0])
        monkeypatch.setattr(lock, "_ABANDONED_AFTER_S", 0.2)
        with pytest.raises(RuntimeError, match=r"was not renewed for .* may be another's"):
            _wait_until(lambda: check() is not None)
        s3.show()


def test_a_store_that_knows_no_conditional_puts_is_told_of(on_s3, s3, caplog):
    s3.ignore_conditions(True)
    with exclusive(on_s3), pytest.raises(ValueError, match="in use by process"), exclusive(on_s3):
        pytest.fail("two at once")
    assert "this store knows no conditional puts" in caplog.text


def test_on_other_storage_an_object_that_is_renewed_is_the_lock(monkeypatch, caplog):
    MemoryFileSystem.store.clear()
    storage = open_storage("memory://bucket/out")
    with exclusive(storage, renewed_every_s=0.02):
        first = storage.read(LOCK)
        with pytest.raises(ValueError, match=r"memory://.*out is in use by process"), exclusive(storage):
            pytest.fail("two at once")
        _wait_until(lambda: storage.read(LOCK) != first)
    assert storage.size_bytes(LOCK) is None
    assert "conditional" not in caplog.text

    storage.write(LOCK, first)
    monkeypatch.setattr(lock, "_ABANDONED_AFTER_S", 0.0)
    with exclusive(storage, renewed_every_s=0.02):
        pass

"""Rows generated together: what each says alone, whoever comes and goes beside it."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from linvt.backbones import load_backbone
from linvt.serving.batching import Batcher, Generated, Row
from linvt.serving.sampling import Sampling
from tests.tiny_models import save_tiny_llava

GREEDY = Sampling()
MIXED = (
    GREEDY,
    Sampling(temperature=2.0, seed=3),
    Sampling(temperature=0.8, top_p=0.9, top_k=20, min_p=0.02, seed=4),
    Sampling(repetition_penalty=1.5),
    Sampling(presence_penalty=1.5, frequency_penalty=1.0, num_log_probs=2),
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Any:
    torch.set_num_threads(1)
    return load_backbone(str(save_tiny_llava(tmp_path_factory.mktemp("models"))), parts={"llm"})


@pytest.fixture
def batcher(backbone) -> Iterator[Batcher]:
    with contextlib.closing(Batcher(backbone, max_rows=4)) as batcher:
        yield batcher


def prompt(length: int, seed: int) -> Tensor:
    return torch.randn(length, 64, generator=torch.Generator().manual_seed(seed))


def row(length: int = 20, seed: int = 0, *, tokens: int = 12, sampling: Sampling = GREEDY, **others: Any) -> Row:
    told = others.pop("on_token", lambda _: False)
    return Row(prompt=prompt(length, seed), max_new_tokens=tokens, sampling=sampling, on_token=told, **others)


def rows() -> list[Row]:
    return [
        row(length, seed, tokens=tokens, sampling=MIXED[seed % len(MIXED)])
        for seed, (length, tokens) in enumerate(
            [(20, 12), (3, 30), (50, 5), (20, 1), (7, 20), (33, 12), (20, 400), (1, 8), (64, 16), (12, 12)]
        )
    ]


def alone(backbone: Any, one: Row) -> Generated:
    with contextlib.closing(Batcher(backbone, max_rows=1)) as batcher:
        return batcher.submit(one).result()


def test_answers_in_a_batch_equal_answers_alone(backbone, batcher):
    """Rows of other lengths and samplings come while others are at work, and leave before they are done."""
    together = [batcher.submit(one) for one in rows()]
    expected = [alone(backbone, one) for one in rows()]
    assert [future.result() for future in together] == expected
    assert batcher.num_tokens > 2 * batcher.num_steps, "they were not generated together"
    assert len({tuple(one.ids) for one in expected}) == len(expected)
    assert {one.finish_reason for one in expected} == {"length", "stop"}


def test_a_greedy_row_is_what_generate_says(backbone):
    for seed in range(3):
        one = row(25, seed)
        mask = torch.ones(1, 25, dtype=torch.bool)
        assert [alone(backbone, one).ids] == backbone.generate(one.prompt[None], mask, max_new_tokens=12)


def test_sampling_obeys_its_parameters(backbone):
    greedy = alone(backbone, row()).ids
    for tight in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        sampling = Sampling(**{"temperature": 1.0, "seed": 5} | tight)
        assert alone(backbone, row(sampling=sampling)).ids == greedy
    assert alone(backbone, row(sampling=Sampling(temperature=1.0, seed=5))).ids != greedy
    free = [alone(backbone, row(sampling=Sampling(temperature=2.0))).ids for _ in range(2)]
    assert free[0] != free[1]
    long = alone(backbone, row(tokens=60)).ids
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 10.0}):
        penalised = alone(backbone, row(tokens=60, sampling=Sampling(**penalty))).ids
        assert len(set(penalised)) > len(set(long)), penalty


def test_a_row_ends_where_its_listener_says(backbone, batcher):
    told: list[int] = []
    ended = threading.Event()

    def listen(choice: Any) -> bool:
        told.append(choice.token_id)
        return len(told) == 3

    generated = batcher.submit(row(on_token=listen, on_end=ended.set)).result()
    assert generated.ids == told == alone(backbone, row()).ids[:3]
    assert generated.finish_reason == "stop"
    assert ended.is_set()


def test_a_cancelled_row_leaves_and_one_that_waits_never_begins(backbone):
    at_work, told = threading.Event(), []
    left, second_left = threading.Event(), threading.Event()

    def listen(_: Any) -> bool:
        at_work.set()
        left.wait()
        return False

    with contextlib.closing(Batcher(backbone, max_rows=1)) as batcher:
        first = batcher.submit(row(tokens=1000, on_token=listen, is_cancelled=left.is_set))
        second = batcher.submit(row(on_token=lambda choice: told.append(choice), is_cancelled=second_left.is_set))
        third = batcher.submit(row())
        at_work.wait()
        second_left.set()
        left.set()
        assert len(first.result().ids) == 1
        assert third.result() == alone(backbone, row())
        assert second.cancelled()
        assert not told


def test_a_row_that_fails_costs_no_other(backbone, batcher):
    def fail(choice: Any) -> bool:
        raise RuntimeError("this listener is broken")

    count = iter(range(2))
    late = batcher.submit(row(on_token=lambda choice: False if next(count) == 0 else fail(choice)))
    early = batcher.submit(row(on_token=fail))
    good = batcher.submit(row())
    wide = Row(prompt=torch.zeros(3, 65), max_new_tokens=2, sampling=GREEDY, on_token=lambda _: False)
    for broken in (late, early, batcher.submit(wide)):
        with pytest.raises(RuntimeError):
            broken.result()
    assert good.result() == alone(backbone, row())
    assert batcher.submit(row()).result() == good.result()


def test_after_closing_nothing_waits_for_ever(backbone):
    with contextlib.closing(Batcher(backbone, max_rows=1)) as batcher:
        at_work = threading.Event()
        running = batcher.submit(row(tokens=10**6, on_token=lambda _: at_work.set() or False))
        waiting = batcher.submit(row())
        at_work.wait()
    with pytest.raises(RuntimeError, match="closed"):
        running.result()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(row())

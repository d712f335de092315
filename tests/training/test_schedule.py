from itertools import pairwise

import pytest

from linvt.training.schedule import learning_rate_at


def _rates(num_steps, warmup_steps, learning_rate=1.0, min_learning_rate=0.1):
    return [
        learning_rate_at(
            step,
            num_steps=num_steps,
            warmup_steps=warmup_steps,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
        )
        for step in range(num_steps)
    ]


def test_warm_up_is_linear_and_the_cosine_falls_from_peak_to_end():
    rates = _rates(110, 10)
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)  # Half way, half way between peak and end.
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0.1 < rates[-1] < 0.101


def test_no_warm_up_and_a_warm_up_longer_than_the_run():
    assert _rates(5, 0)[0] == 1.0
    assert _rates(4, 100) == pytest.approx([0.25, 0.5, 0.75, 1.0])

"""Promise 1: every video token is a convex combination of frame tokens, the same weights for every channel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.video_tokenizer import FrameAverage, LinVT, LinVTConfig, build_video_tokenizer
from linvt.video_tokenizer.pooling import pool, unpool
from linvt.video_tokenizer.refiner import select_top_k

C = 16


def randomised(config: LinVTConfig, seed: int) -> LinVT:
    """A LinVT far from its gentle start: a scorer with opinions, sharp aggregation."""
    torch.manual_seed(seed)
    module = LinVT(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


configs = st.builds(
    LinVTConfig,
    hidden_size=st.just(C),
    top_k=st.integers(1, 40),
    num_queries=st.sampled_from([(4, 2, 1), (3, 3, 3), (1, 2, 5)]),
    windows=st.sampled_from([(1, 2, 4), (1, 3, 8)]),
    num_layers=st.integers(1, 2),
    num_heads=st.sampled_from([1, 4]),
    text_condition=st.booleans(),
    scorer_gradient=st.sampled_from(["log_bias", "none"]),
    time_in_keys=st.booleans(),
    time_anchored_queries=st.booleans(),
)


def masks(draw, rows: int, columns: int) -> torch.Tensor:
    rows_of_bits = [draw(st.lists(st.booleans(), min_size=columns, max_size=columns)) for _ in range(rows)]
    mask = torch.tensor(rows_of_bits)
    mask[:, draw(st.integers(0, columns - 1))] = True
    return mask


@given(data=st.data(), config=configs, seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_map_is_convex_and_reproduces_the_output(data, config, seed):
    v, t, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    frame_mask = masks(data.draw, v, t)
    index = torch.tensor(data.draw(st.lists(st.integers(0, v - 1), min_size=1, max_size=4)))
    module = randomised(config, seed)
    tokens, text = torch.randn(v, t, n, C), torch.randn(len(index), 3, C)
    with torch.no_grad():
        out = module(tokens, text, frame_mask, video_index=index, return_map=True)
        shown = module(tokens, text, frame_mask, video_index=index)
    assert out.map.shape == (len(index), config.num_video_tokens, t * n)
    assert out.map.min() >= 0
    torch.testing.assert_close(out.map.sum(-1), torch.ones(out.map.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.map @ tokens.flatten(1, 2)[index], out.tokens, atol=1e-4, rtol=1e-4)
    assert not out.map.reshape(*out.map.shape[:2], t, n)[
        (~frame_mask)[index][:, None].expand(-1, out.map.shape[1], -1)
    ].any()
    assert torch.equal(shown.tokens, out.tokens), "asking for the map must not change the tokens"


def test_masked_frames_hold_anything_anywhere():
    """Values of padded frames, and where padding stands among the frames, change nothing."""
    module = randomised(LinVTConfig(hidden_size=C, top_k=9, num_queries=(4, 2, 1), num_layers=2, num_heads=4), 3)
    tokens, text = torch.randn(1, 5, 4, C), torch.randn(1, 3, C)
    times = torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9]])
    alone = module(tokens, text, times=times).tokens
    for places in ([0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [0, 2, 3, 5, 7]):
        padded = torch.full((1, 8, 4, C), float("nan"))
        padded_times = torch.zeros(1, 8)
        mask = torch.zeros(1, 8, dtype=torch.bool)
        padded[:, places], padded_times[:, places], mask[:, places] = tokens, times, True
        torch.testing.assert_close(module(padded, text, mask, times=padded_times).tokens, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [7, 1000])
def test_batch_equals_single(top_k):
    config = LinVTConfig(hidden_size=C, top_k=top_k, num_queries=(4, 2, 1), num_layers=2, num_heads=4)
    module = randomised(config, 4)
    tokens, text = torch.randn(3, 4, 5, C), torch.randn(4, 6, C)
    frame_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    text_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 3 + [0] * 3]).bool()
    index = torch.tensor([2, 0, 1, 1])
    together = module(tokens, text, frame_mask, text_mask, video_index=index).tokens
    for row, video in enumerate(index.tolist()):
        t, length = int(frame_mask[video].sum()), int(text_mask[row].sum())
        single = module(tokens[video : video + 1, :t], text[row : row + 1, :length]).tokens
        torch.testing.assert_close(single[0], together[row], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scorer_gradient", ["log_bias", "none"])
def test_gradient_reaches_the_scorer_only_through_the_bias(scorer_gradient):
    config = LinVTConfig(
        hidden_size=C, top_k=6, num_queries=(4, 2, 1), num_layers=1, num_heads=4, scorer_gradient=scorer_gradient
    )
    module = randomised(config, 5)
    module(torch.randn(2, 3, 4, C), torch.randn(2, 3, C)).tokens.square().sum().backward()
    reached = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    scorer = {name for name, _ in module.named_parameters() if name.startswith("refiner")}
    assert reached >= {name for name, _ in module.named_parameters()} - scorer
    assert (reached & scorer == scorer) if scorer_gradient == "log_bias" else not reached & scorer


def test_no_nan_gradient_where_whole_windows_are_padding():
    module = randomised(LinVTConfig(hidden_size=C, top_k=40, num_queries=(4, 2, 1), num_layers=1, num_heads=4), 6)
    frame_mask = torch.tensor([[True] * 8, [True] + [False] * 7])
    module(torch.randn(2, 8, 4, C), torch.randn(2, 3, C), frame_mask).tokens.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_text_changes_the_weights_and_only_where_asked_to():
    tokens = torch.randn(1, 4, 4, C)
    first, second = torch.randn(1, 3, C), torch.randn(1, 3, C)
    for conditioned in (True, False):
        config = LinVTConfig(
            hidden_size=C, top_k=8, num_queries=(4, 2, 1), num_layers=1, num_heads=4, text_condition=conditioned
        )
        module = randomised(config, 7)
        assert torch.equal(module(tokens, first).tokens, module(tokens, second).tokens) is not conditioned


def test_an_untrained_linvt_is_temporal_average_pooling_in_order():
    module = LinVT(LinVTConfig(hidden_size=C, top_k=999, num_queries=(8, 4, 2), num_layers=1, num_heads=4))
    frames = torch.arange(16.0).reshape(1, 16, 1, 1).expand(1, 16, 4, C)
    out = module(frames, torch.randn(1, 3, C)).tokens[0, :, 0]
    for scale in (out[:8], out[8:12], out[12:]):
        assert (scale.diff() > 0).all()
    assert out[0] < 2
    assert out[7] > 13


@pytest.mark.parametrize("time_anchored", [True, False])
def test_a_word_matched_start_prefers_the_patches_that_resemble_the_instruction(time_anchored):
    torch.manual_seed(9)
    config = LinVTConfig(
        hidden_size=64,
        top_k=999,
        num_queries=(8, 4, 2),
        num_layers=2,
        num_heads=1,
        word_matched_start=True,
        time_anchored_queries=time_anchored,
    )
    module = LinVT(config).eval()
    words, things = torch.randn(2, 64), torch.randn(8, 6, 64)
    tokens = things + torch.randn(8, 6, 64) * 0.3
    tokens[:, 1], tokens[:, 4] = words
    with torch.no_grad():
        first, second = (
            module(tokens[None], word[None, None], return_map=True).map[0].reshape(14, 8, 6).sum(1) for word in words
        )
    assert first[:8].argmax(-1).tolist() == [1] * 8
    assert second[:8].argmax(-1).tolist() == [4] * 8


@given(length=st.integers(1, 12), window=st.integers(1, 8), seed=st.integers(0, 999), padding=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_pooling_is_what_unpooling_says(length, window, seed, padding):
    torch.manual_seed(seed)
    values = torch.randn(2, length + padding, 3)
    weights = torch.rand(2, length + padding) + 0.1
    weights[:, length:] = 0
    pooled, sums = pool(values, weights, window)
    uniform = (sums > 0).float()[:, None] / (sums > 0).sum(-1)[:, None, None]
    carried = unpool(uniform, weights, window)
    torch.testing.assert_close(carried.sum(-1), torch.ones(2, 1))
    torch.testing.assert_close(carried @ values, uniform @ pooled)


def test_equal_scores_are_selected_evenly_over_frames_and_in_temporal_order():
    frame_mask = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    chosen, valid = select_top_k(torch.zeros(2, 6, 10), frame_mask, 24)
    assert valid.all()
    assert (chosen.diff(dim=-1) > 0).all()
    counts = torch.stack([torch.bincount(row // 10, minlength=6) for row in chosen])
    assert set(counts[0].tolist()) <= {3, 4, 5}
    assert set(counts[1][frame_mask[1]].tolist()) <= {5, 6, 7}
    assert not counts[1][~frame_mask[1]].any()


def test_the_highest_scores_win():
    scores = torch.tensor([[[0.1, 5.0], [4.0, 0.2], [0.3, 3.0]]])
    chosen, _ = select_top_k(scores, torch.ones(1, 3, dtype=torch.bool), 3)
    assert chosen.tolist() == [[1, 2, 5]]


def test_parameter_count_at_the_papers_size():
    """The paper says 267M without naming an LLM; ours at C = 2048 is this, exactly."""
    with torch.device("meta"):
        module = LinVT(LinVTConfig(hidden_size=2048))
    assert sum(p.numel() for p in module.parameters()) == 277_339_012


def test_frame_average_is_the_mean_of_each_frame():
    config = LinVTConfig(hidden_size=C, num_heads=4, kind="avg")
    module = build_video_tokenizer(config)
    assert isinstance(module, FrameAverage)
    tokens = torch.randn(2, 3, 4, C)
    frame_mask = torch.tensor([[True, True, True], [True, False, True]])
    out = module(tokens, frame_mask=frame_mask, return_map=True)
    torch.testing.assert_close(out.tokens[frame_mask], tokens.mean(2)[frame_mask])
    assert torch.equal(out.mask, frame_mask)
    torch.testing.assert_close(out.map @ tokens.flatten(1, 2), out.tokens)


def test_errors_name_what_came():
    with pytest.raises(ValueError, match="word_matched_start needs text_condition"):
        LinVTConfig(hidden_size=C, num_heads=4, text_condition=False, word_matched_start=True)
    module = LinVT(LinVTConfig(hidden_size=C, num_queries=(4, 2, 1), num_layers=1, num_heads=4))
    with pytest.raises(ValueError, match="8 channels"):
        module(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 8))
    with pytest.raises(ValueError, match="conditioned on text"):
        module(torch.randn(1, 2, 3, C))
    with pytest.raises(ValueError, match="no valid frame"):
        module(torch.randn(1, 2, 3, C), torch.randn(1, 2, C), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        LinVTConfig(hidden_size=15)

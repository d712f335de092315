"""Promise 1: every video token is a convex combination of frame tokens, the same weights for every channel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from linvt.video_tokenizer import FrameAverage, LinVT, LinVTConfig, build_video_tokenizer, refiner
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
    lambda **fields: LinVTConfig(**fields | ({"num_queries": (4, 2, 1)} if fields["multi_scale"] == "A" else {})),
    hidden_size=st.just(C),
    kind=st.sampled_from(["linvt", "linvt", "svr", "tta"]),
    multi_scale=st.sampled_from(["single", "A", "B", "C"]),
    refiner_width=st.sampled_from([None, 8]),
    top_k=st.integers(1, 40),
    num_queries=st.sampled_from([(4, 2, 1), (3, 3, 3), (1, 2, 5)]),
    windows=st.sampled_from([(1, 2, 4), (1, 3, 8)]),
    num_layers=st.integers(1, 2),
    num_heads=st.sampled_from([1, 4]),
    text_condition=st.booleans(),
    scorer_gradient=st.sampled_from(["log_bias", "straight_through", "none"]),
    gumbel_noise=st.sampled_from([0.0, 1.0]),
    time_in_keys=st.booleans(),
    time_anchored_queries=st.booleans(),
)


def masks(draw, rows: int, columns: int) -> torch.Tensor:
    rows_of_bits = [draw(st.lists(st.booleans(), min_size=columns, max_size=columns)) for _ in range(rows)]
    mask = torch.tensor(rows_of_bits)
    mask[:, draw(st.integers(0, columns - 1))] = True
    return mask


@given(data=st.data(), config=configs, seed=st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_map_is_convex_and_reproduces_the_output(data, config, seed):
    v, t, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    frame_mask = masks(data.draw, v, t)
    index = torch.tensor(data.draw(st.lists(st.integers(0, v - 1), min_size=1, max_size=4)))
    module = randomised(config, seed).train(data.draw(st.booleans()))
    tokens, text = torch.randn(v, t, n, C), torch.randn(len(index), 3, C)
    with torch.no_grad():
        torch.manual_seed(seed)
        out = module(tokens, text, frame_mask, video_index=index, return_map=True)
        torch.manual_seed(seed)
        shown = module(tokens, text, frame_mask, video_index=index)
    assert out.map.shape == (len(index), config.num_video_tokens, t * n)
    assert out.map.min() >= 0
    torch.testing.assert_close(out.map.sum(-1), torch.ones(out.map.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.map @ tokens.flatten(1, 2)[index], out.tokens, atol=1e-4, rtol=1e-4)
    assert not out.map.reshape(*out.map.shape[:2], t, n)[
        (~frame_mask)[index][:, None].expand(-1, out.map.shape[1], -1)
    ].any()
    assert torch.equal(shown.tokens, out.tokens), "asking for the map must not change the tokens"
    # In any direction no video token reaches beyond the valid tokens of its video: it lies in their convex hull.
    for direction in torch.randn(5, C):
        reach = (tokens @ direction).masked_fill(~frame_mask[..., None], float("-inf")).flatten(1).amax(1)[index]
        assert (out.tokens @ direction <= reach[:, None] + 1e-4 * (1 + reach.abs()[:, None])).all()


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


@pytest.mark.parametrize("scorer_gradient", ["log_bias", "straight_through", "none"])
@pytest.mark.parametrize("fields", [{}, {"multi_scale": "B"}, {"refiner_width": 8}, {"kind": "svr"}])
def test_gradient_reaches_the_scorer_unless_it_is_turned_off(scorer_gradient, fields):
    config = LinVTConfig(
        hidden_size=C,
        top_k=6,
        num_queries=(4, 2, 1),
        num_layers=1,
        num_heads=4,
        scorer_gradient=scorer_gradient,
        **fields,
    )
    module = randomised(config, 5)
    loss = module(torch.randn(2, 3, 4, C), torch.randn(2, 3, C)).tokens.square().sum()
    if config.kind == "svr" and scorer_gradient == "none":  # nothing in it can learn
        assert not loss.requires_grad
        return
    loss.backward()
    reached = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    scorer = {name for name, _ in module.named_parameters() if name.startswith("refiner")}
    assert reached >= {name for name, _ in module.named_parameters()} - scorer
    assert (reached & scorer == scorer) if scorer_gradient != "none" else not reached & scorer


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


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("kind", ["linvt", "svr", "tta"])
def test_no_tensor_grows_with_the_square_of_the_tokens(kind):
    config = LinVTConfig(hidden_size=C, kind=kind, top_k=64, num_queries=(4, 2, 1), num_layers=1, num_heads=4)
    largest = []
    for frames in (16, 32, 64):
        with _LargestTensor() as seen:
            out = randomised(config, 8)(torch.randn(1, frames, 16, C), torch.randn(1, 3, C), return_map=True)
            (out.tokens.square().sum() + out.map.square().sum()).backward()
        largest.append(seen.numel)
    assert largest[2] < (64 * 16) ** 2 / 8
    assert largest[2] < 2.05 * largest[1] < 2.05**2 * largest[0]  # linear, but for the windows at the end


def test_frames_are_scored_a_chunk_at_a_time_and_recomputed_if_asked(monkeypatch):
    config = LinVTConfig(hidden_size=C, top_k=9, num_queries=(4, 2, 1), num_layers=2, num_heads=4)
    tokens, text = torch.randn(2, 5, 4, C), torch.randn(2, 3, C)
    frame_mask = torch.tensor([[True] * 5, [True, False, True, True, False]])

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        module = randomised(config, 10)
        module.gradient_checkpointing_enable(checkpointing)
        seen.clear()
        module.refiner.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        module(tokens, text, frame_mask).tokens.square().sum().backward()
        return {name: p.grad for name, p in module.named_parameters()}

    seen: list[int] = []
    whole = gradients(False)
    assert seen == [8]
    monkeypatch.setattr(refiner, "_tokens_per_chunk", lambda device: 12)
    chunked = gradients(False)
    assert seen == [3, 3, 2]
    recomputed = gradients(True)
    assert sorted(seen) == [2, 2, 3, 3, 3, 3]
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_masks", [False, True])
def test_it_compiles_into_one_graph_that_computes_the_same(with_masks):
    config = LinVTConfig(hidden_size=C, top_k=9, num_queries=(4, 2, 1), num_layers=1, num_heads=4)
    tokens, text = torch.randn(2, 5, 4, C), torch.randn(2, 3, C)
    masks = ()
    if with_masks:
        masks = (
            torch.tensor([[True] * 5, [True, True, False, False, False]]),
            torch.tensor([[True] * 3, [True] * 2 + [False]]),
        )
        tokens[1, 2:] = float("nan")
    results = []
    for compiled in (False, True):
        module = randomised(config, 11)
        function = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
        out = function(tokens, text, *masks, return_map=True)
        out.tokens.square().sum().backward()
        results.append((out.tokens, out.map, module.refiner.head.weight.grad, module.aggregator.weight_key.weight.grad))
    for eager, graph in zip(*results):
        torch.testing.assert_close(graph, eager, atol=1e-4, rtol=1e-4)


def test_bfloat16_keeps_the_map_a_distribution():
    config = LinVTConfig(hidden_size=C, top_k=30, num_queries=(4, 2, 1), num_layers=2, num_heads=4)
    module = LinVT(config)
    tokens, text = torch.randn(1, 6, 8, C), torch.randn(1, 3, C)
    exact = module(tokens, text, return_map=True)
    half = module.bfloat16()(tokens.bfloat16(), text.bfloat16(), return_map=True)
    assert half.tokens.dtype == torch.bfloat16
    torch.testing.assert_close(half.map.sum(-1), torch.ones(1, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(half.map, exact.map, atol=0.02, rtol=0.1)
    torch.testing.assert_close(half.tokens.float(), exact.tokens, atol=0.05, rtol=0.05)


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
    with pytest.raises(ValueError, match="refiner_width 10 is not a multiple"):
        LinVTConfig(hidden_size=C, refiner_width=10)
    with pytest.raises(ValueError, match="must all divide 4"):
        LinVTConfig(hidden_size=C, multi_scale="A", num_queries=(4, 3, 1))
    with pytest.raises(ValueError, match="FrameAverage"):
        LinVT(LinVTConfig(hidden_size=C, kind="avg"))

"""The variants of the paper's tables, each against what it must reduce to."""

import pytest
import torch
import torch.nn.functional as F

from linvt.video_tokenizer import LinVT, LinVTConfig
from tests.video_tokenizer.test_linvt import C, randomised


def config_of(**fields) -> LinVTConfig:
    return LinVTConfig(
        **{"hidden_size": C, "top_k": 99, "num_layers": 2, "num_heads": 4, "num_queries": (4, 2, 1)} | fields
    )


TOKENS, TEXT = torch.randn(2, 5, 3, C, generator=torch.Generator().manual_seed(1)), torch.randn(2, 4, C)


def test_single_a_is_one_scale_with_all_queries():
    single = randomised(config_of(multi_scale="single"), 1)
    one_scale = LinVT(config_of(num_queries=(7,), windows=(1,)))
    one_scale.load_state_dict(single.state_dict())
    assert torch.equal(single(TOKENS, TEXT).tokens, one_scale(TOKENS, TEXT).tokens)


def test_multi_a_averages_runs_of_the_first_scales_video_tokens():
    module = randomised(config_of(multi_scale="A"), 2)
    first_scale = LinVT(config_of(num_queries=(4,), windows=(1,)))
    first_scale.load_state_dict(module.state_dict())
    finest = first_scale(TOKENS, TEXT).tokens
    expected = torch.cat([finest, finest.reshape(2, 2, 2, C).mean(2), finest.mean(1, keepdim=True)], dim=1)
    torch.testing.assert_close(module(TOKENS, TEXT).tokens, expected)


def test_multi_b_lets_scales_see_each_other_and_multi_c_does_not():
    for multi_scale, is_seen in (("B", True), ("C", False)):
        module = randomised(config_of(multi_scale=multi_scale), 3)
        before = module(TOKENS, TEXT).tokens
        torch.nn.init.normal_(module.aggregator.queries[2])
        after = module(TOKENS, TEXT).tokens
        assert torch.equal(before[:, :6], after[:, :6]) is not is_seen
        assert not torch.equal(before[:, 6:], after[:, 6:])


def test_multi_b_and_c_agree_on_one_scale():
    b = randomised(config_of(multi_scale="B", num_queries=(5,), windows=(2,)), 4)
    c = LinVT(config_of(multi_scale="C", num_queries=(5,), windows=(2,)))
    c.load_state_dict(b.state_dict())
    assert torch.equal(b(TOKENS, TEXT).tokens, c(TOKENS, TEXT).tokens)


def test_tta_alone_reads_every_token_with_equal_weight():
    alone = randomised(config_of(kind="tta", top_k=2), 5)
    both = LinVT(config_of(scorer_gradient="none"))
    both.load_state_dict(alone.state_dict(), strict=False)
    assert alone.refiner is None
    assert torch.equal(alone(TOKENS, TEXT).tokens, both(TOKENS, TEXT).tokens)


@pytest.mark.parametrize("frames", [1, 5, 11])
def test_svr_alone_averages_equal_runs_of_its_selection(frames):
    """With equal scores these are torch's own adaptive average pools, whatever the question."""
    module = LinVT(config_of(kind="svr"))
    tokens = torch.randn(1, frames, 3, C)
    expected = [F.adaptive_avg_pool1d(tokens.flatten(1, 2).mT, q).mT for q in (4, 2, 1)]
    torch.testing.assert_close(module(tokens).tokens, torch.cat(expected, dim=1))


def test_svr_alone_weighs_by_score():
    module = randomised(config_of(kind="svr", num_queries=(1,), windows=(1,), top_k=6), 6)
    weights = torch.sigmoid(module.refiner(TOKENS)).flatten(1)
    best = weights.topk(6)
    expected = (best.values[..., None] * TOKENS.flatten(1, 2).gather(1, best.indices[..., None].expand(-1, -1, C))).sum(
        1
    )
    torch.testing.assert_close(module(TOKENS).tokens[:, 0], expected / best.values.sum(1, keepdim=True))


def test_straight_through_computes_what_the_paper_literally_says():
    straight = randomised(config_of(scorer_gradient="straight_through", top_k=7), 7)
    literal = LinVT(config_of(scorer_gradient="none", top_k=7))
    literal.load_state_dict(straight.state_dict())
    assert torch.equal(straight(TOKENS, TEXT).tokens, literal(TOKENS, TEXT).tokens)


def test_gumbel_noise_changes_the_selection_in_training_only():
    module = randomised(config_of(gumbel_noise=5.0, top_k=4), 8)

    def selections() -> set[tuple[int, ...]]:
        return {tuple(module.encode_videos(TOKENS).chosen[0].tolist()) for _ in range(8)}

    assert len(selections()) == 1
    module.train()
    assert len(selections()) > 1


def test_a_narrow_scorer_leaves_the_tokens_as_they_are():
    wide, narrow = config_of(), config_of(refiner_width=8)
    sizes = [sum(p.numel() for p in LinVT(config).refiner.parameters()) for config in (wide, narrow)]
    assert sizes[1] < sizes[0]
    module = randomised(narrow, 9)
    out = module(TOKENS, TEXT, return_map=True)
    torch.testing.assert_close(out.map @ TOKENS.flatten(1, 2), out.tokens, atol=1e-4, rtol=1e-4)


def test_the_order_of_an_unordered_token_set_does_not_matter():
    """Latents without a grid (BLIP-3): scores follow the tokens, and the unpooled scale is blind to their order."""
    module = randomised(config_of(num_queries=(4,), windows=(1,), top_k=8), 10)
    order = torch.tensor([2, 0, 1])
    scores = module.refiner(TOKENS)
    torch.testing.assert_close(module.refiner(TOKENS[:, :, order]), scores[:, :, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        module(TOKENS[:, :, order], TEXT).tokens, module(TOKENS, TEXT).tokens, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("time_in_keys", [True, False])
def test_without_time_the_order_of_frames_does_not_matter(time_in_keys):
    module = randomised(
        config_of(num_queries=(4,), windows=(1,), time_in_keys=time_in_keys, time_anchored_queries=False), 11
    )
    same = torch.allclose(module(TOKENS.flip(1), TEXT).tokens, module(TOKENS, TEXT).tokens, atol=1e-4)
    assert same is not time_in_keys

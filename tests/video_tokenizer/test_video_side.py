"""A further question about a video pays for the question alone, and gets the same answer."""

import torch

from linvt.video_tokenizer import LinVTConfig, VideoSideCache
from tests.video_tokenizer.test_linvt import C, randomised

CONFIG = LinVTConfig(hidden_size=C, top_k=9, num_queries=(4, 2, 1), num_layers=2, num_heads=4)


def test_the_two_halves_are_the_whole():
    module = randomised(CONFIG, 1)
    tokens, frame_mask = torch.randn(2, 4, 3, C), torch.tensor([[True] * 4, [True, True, False, False]])
    side = module.encode_videos(tokens, frame_mask)
    module.refiner = None  # what asks below must not score again
    for seed in (2, 3):
        text = torch.randn(2, 5, C, generator=torch.Generator().manual_seed(seed))
        whole = randomised(CONFIG, 1)(tokens, text, frame_mask, return_map=True)
        half = module.aggregate(side, text, return_map=True)
        assert torch.equal(whole.tokens, half.tokens)
        assert torch.equal(whole.map, half.map)


def test_the_cache_keeps_the_latest_videos_within_its_bytes():
    module = randomised(CONFIG, 1)
    sides = [module.encode_videos(torch.randn(1, 4, 3, C)) for _ in range(3)]
    assert sides[0].num_bytes > 4 * 9 * C  # at least the selected tokens
    cache = VideoSideCache(2 * sides[0].num_bytes)
    for name, expected in (("a", 0), ("b", 1), ("a", 0), ("c", 2), ("a", 0)):
        assert cache.get(name, lambda expected=expected: sides[expected]) is sides[expected]
    assert (cache.hits, cache.misses) == (2, 3)
    assert cache.held_bytes == 2 * sides[0].num_bytes
    assert cache.get("b", lambda: sides[2]) is sides[2], "b was the oldest and had to go"
    small = VideoSideCache(1)
    assert small.get("a", lambda: sides[0]) is sides[0]
    assert small.held_bytes == 0

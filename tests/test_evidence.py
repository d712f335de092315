"""Evidence: what it adds up to, what can carry it, and that an answer suffers when it is taken away."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from linvt import LinVT, LinVTConfig, VideoLLM, load_backbone
from linvt.answering import embed_prompt, fill_slots, frame_token_weights, generate
from linvt.evidence import (
    as_weights,
    frame_token_gains,
    integrated_gradients,
    map_weights,
    over_frames,
    over_patches,
    over_shots,
)
from linvt.serving.feature_spec import trained_feature_spec
from linvt.shards import CachedVideo
from linvt.shots import load_detector
from linvt.tiny.world import write_video
from linvt.tiny.world_config import WorldConfig
from linvt.visualization.config import EMBEDDED_MODEL
from linvt.visualization.inputs import encode_file
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> VideoLLM:
    torch.set_num_threads(1)
    backbone = load_backbone(str(save_tiny_llava(tmp_path_factory.mktemp("llava"))), parts={"llm"})
    torch.manual_seed(0)
    config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=30)
    return VideoLLM(backbone, LinVT(config)).eval().requires_grad_(False)


def _video(num_frames: int = 5, seed: int = 0, kind: str = "video") -> CachedVideo:
    generator = torch.Generator().manual_seed(seed)
    return CachedVideo(
        key=f"{seed:032x}",
        video_id="v.mp4",
        uri="v.mp4",
        sha256="00",
        kind=kind,  # pyright: ignore[reportArgumentType]
        tokens=torch.randn(num_frames, 9, 64, generator=generator).bfloat16(),
        grid=(3, 3),
        timestamps_s=np.arange(num_frames, dtype=np.float64),
        duration_s=float(num_frames),
        shots=np.array([[0.0, 2.0], [2.0, float(num_frames)]]),
        shot_index=np.array([0, 0, *[1] * num_frames][:num_frames]),
        feature_id="f",
    )


def _random_parts(seed: int = 0):
    """Video tokens [Q, C], a map [Q, T·N] and frame tokens [T, N, C] that go together."""
    generator = torch.Generator().manual_seed(seed)
    frames_TNC = torch.randn(4, 3, 8, generator=generator)
    map_QS = torch.rand(5, 12, generator=generator)
    map_QS = map_QS / map_QS.sum(-1, keepdim=True)
    return map_QS @ frames_TNC.flatten(0, 1), map_QS, frames_TNC


def test_gains_add_up_to_what_the_video_adds() -> None:
    tokens, map_QS, frames = _random_parts()
    direction = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))

    def log_probs(tokens_QC):
        return torch.nn.functional.logsigmoid(torch.tanh(tokens_QC).sum(0) @ direction.T)

    gained = log_probs(tokens) - log_probs(tokens.mean(0).expand_as(tokens))
    gradients = integrated_gradients(log_probs, tokens, per_answer_token=True, steps=64)
    gains = frame_token_gains(gradients, tokens, map_QS, frames)
    torch.testing.assert_close(gains.sum((1, 2)), gained, atol=1e-4, rtol=1e-3)
    whole = frame_token_gains(integrated_gradients(log_probs, tokens, steps=64), tokens, map_QS, frames)
    torch.testing.assert_close(whole[0], gains.sum(0), atol=1e-5, rtol=1e-4)


def test_gains_of_a_real_model_add_up(llm) -> None:
    video, messages = _video(), [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}]
    (slot,) = fill_slots(llm, messages, [video], return_maps=True)
    ids = llm.backbone.text_ids("red ball")

    def log_probs(tokens_QC):
        return llm.answer_log_probs(messages, [tokens_QC], ids)

    gained = log_probs(slot.tokens).sum() - log_probs(slot.tokens.mean(0).expand_as(slot.tokens)).sum()
    gains = frame_token_gains(
        integrated_gradients(log_probs, slot.tokens, steps=64), slot.tokens, slot.map, video.tokens
    )
    assert abs(float(gained)) > 0.05
    assert float(gains.sum()) == pytest.approx(float(gained), abs=0.02 * abs(float(gained)) + 0.01)


def test_log_probs_are_those_of_generation(llm) -> None:
    """The greedy answer's tokens are each the likeliest after those before them."""
    video, messages = _video(), [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}]
    (slot,) = fill_slots(llm, messages, [video])
    (ids,) = generate(llm, [embed_prompt(llm, messages, [slot])], max_new_tokens=4)
    greedy = llm.answer_log_probs(messages, [slot.tokens], ids)
    for place in range(len(ids)):
        for other in llm.backbone.text_ids("red one what ball"):
            changed = [*ids[:place], other, *ids[place + 1 :]]
            assert llm.answer_log_probs(messages, [slot.tokens], changed)[place] <= greedy[place] + 1e-5


def test_only_what_the_answer_hangs_on_has_weight() -> None:
    """Only video token 2 matters, and it holds frame 3 alone: all evidence is there, whatever the others hold."""
    _, map_QS, frames = _random_parts()
    map_QS[2] = torch.tensor([0.0] * 9 + [0.2, 0.3, 0.5])
    tokens = map_QS @ frames.flatten(0, 1)
    toward = tokens[2] - tokens.mean(0)
    gradients = integrated_gradients(lambda x: (x[2] @ toward)[None], tokens)
    weights = as_weights(frame_token_gains(gradients, tokens, map_QS, frames), map_QS)[0]
    assert weights[3].sum() == pytest.approx(1)
    assert over_frames(weights).tolist() == pytest.approx([0, 0, 0, 1])


def test_what_speaks_against_an_answer_has_none() -> None:
    map_QS = torch.tensor([[0.5, 0.5]])
    gains = torch.tensor([[[2.0], [-5.0]], [[-1.0], [-2.0]]])
    weights = as_weights(gains, map_QS)
    assert weights[0].flatten().tolist() == [1, 0]
    assert torch.equal(weights[1], map_weights(map_QS, 2)), "nothing speaks for it: the map alone"


def test_sums_over_time_shots_and_patches() -> None:
    weights = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
    assert torch.equal(over_frames(weights), weights.sum(-1))
    assert torch.equal(over_patches(weights), weights.sum(1))
    shots = over_shots(weights, [0, 2, 2, 2], 4)
    assert torch.equal(shots[:, 0], weights[:, 0].sum(-1))
    assert torch.equal(shots[:, 2], weights[:, 1:].sum((1, 2)))
    assert not shots[:, [1, 3]].any()
    with pytest.raises(ValueError, match="3 shot indices for 4 frames"):
        over_shots(weights, [0, 0, 0], 1)


def test_a_map_of_another_video_is_refused() -> None:
    tokens, map_QS, frames = _random_parts()
    with pytest.raises(ValueError, match=r"expected \[Q, T·N\] = \(5, 9\)"):
        frame_token_gains(torch.zeros(1, 5, 8), tokens, map_QS, frames[:3])


def test_an_empty_answer_is_weighed_by_the_map(llm) -> None:
    video, messages = _video(), [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}]
    (slot,) = fill_slots(llm, messages, [video], return_maps=True)
    for per_answer_token in (False, True):
        (weights,) = frame_token_weights(llm, messages, [slot], [video], [], per_answer_token=per_answer_token)
        assert torch.equal(weights, map_weights(slot.map, 5)[None])


def test_evidence_of_two_videos_is_of_each_alone(llm) -> None:
    """The second video holds the answer's weight only in its own slot, and an image has none."""
    media = [_video(), _video(1, seed=2, kind="image"), _video(6, seed=1)]
    parts = [{"type": item.kind} for item in media]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what color is the ball ?"}]}]
    slots = fill_slots(llm, messages, media, return_maps=True)
    first, image, second = frame_token_weights(llm, messages, slots, media, llm.backbone.text_ids("red ball"))
    assert image is None
    assert first.shape == (1, 5, 9)
    assert second.shape == (1, 6, 9)
    assert [float(weights.sum()) for weights in (first, second)] == pytest.approx([1, 1], abs=1e-5)


def test_answers_carry_the_same_evidence_as_the_steps(llm) -> None:
    video, question = _video(), "what color is the ball ?"
    answer = llm.answer(video, question, max_new_tokens=4)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    slots = fill_slots(llm, messages, [video], return_maps=True)
    (ids,) = generate(llm, [embed_prompt(llm, messages, slots)], max_new_tokens=4)
    (weights,) = frame_token_weights(llm, messages, slots, [video], ids)
    torch.testing.assert_close(answer.weights, weights[0])
    assert [moment.weight for moment in answer.evidence] == pytest.approx(over_frames(weights[0]).tolist())


def test_in_bfloat16_the_evidence_is_nearly_the_same(llm, tmp_path) -> None:
    llm.save_pretrained(tmp_path)
    half = VideoLLM.from_pretrained(tmp_path, parts=("llm",), dtype=torch.bfloat16)
    weights = []
    for model in (llm, half):
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}]
        slots = fill_slots(model, messages, [_video()], return_maps=True)
        (found,) = frame_token_weights(model, messages, slots, [_video()], llm.backbone.text_ids("red"))
        assert found.dtype == torch.float32
        assert float(found.sum()) == pytest.approx(1, abs=1e-4)
        weights.append(over_frames(found[0]))
    assert float((weights[0] - weights[1]).abs().sum()) < 0.3, weights


@pytest.mark.slow
def test_taking_evidence_away_costs_the_answer_more_than_chance() -> None:
    """Half of the frames, masked: those that weigh most against as many at random (benchmarks/evidence_deletion.py)."""
    from benchmarks.evidence_deletion import OURS, Case, weights_of

    torch.set_num_threads(1)
    llm = VideoLLM.from_pretrained(EMBEDDED_MODEL)
    spec, batch_size = trained_feature_spec(EMBEDDED_MODEL, detector="none")
    generator = torch.Generator().manual_seed(0)
    heaviest, random = [], []
    with tempfile.TemporaryDirectory() as world:
        (Path(world) / "test" / "videos").mkdir(parents=True)
        for index in range(5):
            row = write_video(WorldConfig(out=world), "test", index)
            uri = str(Path(world) / row["media"])
            video = encode_file(uri, llm.backbone, spec, load_detector("none"), batch_size=batch_size)
            for turn in row["qa"][:3]:
                case = Case(llm, video, turn["question"])
                weights, _ = weights_of(case)
                t = len(video.tokens)
                orders = [over_frames(weights[OURS]).argsort(descending=True)]
                orders += [torch.randperm(t, generator=generator) for _ in range(6)]
                masks = [torch.ones(t, dtype=torch.bool).index_fill(0, order[: t // 2], False) for order in orders]
                falls = case.falls([case.tokens_TNC] * len(masks), masks)
                heaviest.append(falls[0])
                random.append(np.mean(falls[1:]))
    assert np.mean(heaviest) > np.mean(random) + 0.1, (heaviest, random)

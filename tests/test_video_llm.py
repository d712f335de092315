"""The whole model on cached tokens: losses, images untouched, evidence, artifacts."""

import dataclasses
import json

import pytest
import torch

from linvt import LinVT, LinVTConfig, VideoLLM, load_backbone
from linvt.annotations import Turn
from linvt.backbones import vision_fingerprint
from linvt.lora import add_lora
from linvt.losses import ContrastiveHead
from linvt.shards import CachedVideo
from linvt.training.batches import Visit, collate
from linvt.video_tokenizer import VideoSideCache
from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def model(directory):
    torch.manual_seed(0)
    backbone = load_backbone(str(directory), parts={"llm"})
    config = LinVTConfig(hidden_size=backbone.hidden_size, top_k=100, num_queries=(4, 2, 1), num_layers=1, num_heads=4)
    linvt = LinVT(config)
    for parameter in linvt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return VideoLLM(backbone, linvt)


def cached(seed: int, frames: int, kind="video", c=64) -> CachedVideo:
    generator = torch.Generator().manual_seed(seed)
    return CachedVideo(
        key=f"{seed:x}".ljust(32, "0"),
        video_id=f"{seed}.mp4",
        uri=f"{seed}.mp4",
        sha256="0" * 64,
        tokens=torch.randn(frames, 9, c, generator=generator).to(torch.bfloat16),
        grid=(3, 3),
        timestamps_s=tuple(float(i) + 0.5 for i in range(frames)),
        duration_s=float(frames),
        shots=((0.0, float(frames)),),
        shot_index=(0,) * frames,
        feature_id="f" * 64,
        kind=kind,
    )


def visit(seed, frames, *answers, kind="video", caption=None):
    turns = tuple(Turn(question=f"what color is the {shape} ?", answer=answer) for shape, answer in answers)
    return Visit(video=cached(seed, frames, kind), turns=turns, caption=caption)


def test_a_batch_costs_what_its_visits_cost_alone(model):
    visits = [
        visit(1, 4, ("star", "red"), ("circle", "blue")),
        visit(2, 7, ("square", "green")),
        visit(3, 1, ("ring", "white"), kind="image"),
    ]
    together = model(collate(visits, model.backbone))
    alone = [model(collate([v], model.backbone)) for v in visits]
    assert together.answer_tokens == sum(o.answer_tokens for o in alone)
    torch.testing.assert_close(together.answer_nll, sum(o.answer_nll for o in alone), atol=1e-3, rtol=1e-4)


def test_only_answers_are_labelled(model):
    batch = collate([visit(1, 4, ("star", "red"))], model.backbone)
    (sequence,) = batch.sequences
    labelled = [label for label in sequence.labels if label != -100]
    assert model.backbone.decode(labelled) == "red"
    assert labelled == list(sequence.after[-len(labelled) :])


def test_images_go_past_linvt_untouched(model, directory):
    """Promise 5: with any LinVT in between, an image's answers are those of the base image-LLM."""
    image = cached(3, 1, kind="image")
    question = "what color is the star ?"
    prompt = model.backbone.prompt(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    )
    embeds = model._splice(prompt.segments, [image.tokens[0]])[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    base = model.backbone.generate(embeds, mask, max_new_tokens=5)
    assert model.answer_batch([(image, question)], max_new_tokens=5) == [model.backbone.decode(base[0])]


def test_batched_answers_equal_single_ones(model):
    items = [
        (cached(1, 5), "what color is the star ?"),
        (cached(2, 9), "is there a ring ?"),
        (cached(3, 1, "image"), "what ?"),
    ]
    assert model.answer_batch(items, max_new_tokens=6) == [
        model.answer_batch([item], max_new_tokens=6)[0] for item in items
    ]


def test_evidence_is_a_distribution_over_the_frames(model):
    video = cached(1, 6)
    answer = model.answer(video, "what color is the star ?", max_new_tokens=4, return_map=True)
    assert [m.timestamp_s for m in answer.evidence] == list(video.timestamps_s)
    assert sum(m.weight for m in answer.evidence) == pytest.approx(1, abs=1e-4)
    assert min(m.weight for m in answer.evidence) >= 0
    tokens = model.video_tokens(video, "what color is the star ?").tokens[0]
    torch.testing.assert_close(answer.map @ video.tokens.flatten(0, 1).float(), tokens, atol=1e-3, rtol=1e-3)


def test_evidence_follows_a_linvt_that_looks_at_one_frame(model):
    """With queries anchored very narrowly the map is known: evidence can only lie where the map does."""
    video = dataclasses.replace(cached(1, 6), timestamps_s=(3.0,) * 5 + (6.0,), duration_s=6.0)
    for widths in model.video_tokenizer.aggregator.log_widths:
        torch.nn.init.constant_(widths, -6.0)
    torch.nn.init.zeros_(model.video_tokenizer.aggregator.weight_query.weight)
    torch.nn.init.zeros_(model.video_tokenizer.aggregator.weight_query.bias)
    answer = model.answer(video, "what color is the star ?", max_new_tokens=3, return_map=True)
    by_frame = answer.map.reshape(-1, 6, 9).sum(-1).max(0).values
    assert {i for i, m in enumerate(answer.evidence) if m.weight > 1e-6} <= {
        i for i, w in enumerate(by_frame) if w > 1e-6
    }


def test_saved_and_brought_back_it_answers_the_same(model, tmp_path):
    add_lora(model.backbone, rank=2, alpha=4, dropout=0.0)
    torch.manual_seed(1)
    for name, parameter in model.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    items = [(cached(1, 5), "what color is the star ?"), (cached(2, 9), "is there a ring ?")]
    batch = collate([visit(1, 4, ("star", "red"))], model.backbone)
    model.save_pretrained(tmp_path, extraction={"num_frames": 8})
    again = VideoLLM.from_pretrained(tmp_path, parts={"llm"})
    assert torch.equal(model.eval()(batch).answer_nll, again(batch).answer_nll)
    assert model.answer_batch(items) == again.answer_batch(items)
    assert not any(p.requires_grad for p in again.parameters())
    names = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert names == {
        "config.json",
        "linvt.safetensors",
        "generation_config.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == model.backbone.name


def test_a_directory_without_its_last_file_is_no_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        VideoLLM.from_pretrained(tmp_path)


def test_contrastive_loss_does_not_push_a_video_from_its_other_visit(model):
    model.contrastive = ContrastiveHead(model.backbone.hidden_size)
    a = visit(1, 4, ("star", "red"), caption="red star")
    b = visit(2, 5, ("ring", "blue"), caption="blue ring")
    assert model(collate([a, b], model.backbone)).contrastive > 0
    assert model(collate([a, a], model.backbone)).contrastive == 0
    # Every row of [a, b, b] has one negative, as in [a, b], but the first, which meets b twice.
    head, video, text = model.contrastive, torch.randn(2, 64), torch.randn(2, 64)
    scale = head.log_temperature.exp()
    v, t = (torch.nn.functional.normalize(x, dim=-1) for x in (head.video(video), head.text(text)))
    expected = 0
    for rows, columns in ((v, t), (t, v)):
        to_a = (rows[0] @ columns[[0, 1, 1]].T / scale).log_softmax(-1)[0]
        to_b = (rows[1] @ columns[[1, 0]].T / scale).log_softmax(-1)[0]
        expected = expected - (to_a + 2 * to_b) / 6
    index = [0, 1, 1]
    torch.testing.assert_close(head(video[index], text[index], torch.tensor([7, 8, 8])), expected)


def test_a_further_question_about_a_video_scores_no_frame_again(model):
    model.eval()
    videos, questions = [cached(1, 6), cached(2, 4)], ["what color is the star ?", "is there a ring ?"]
    scored = []
    model.video_tokenizer.refiner.register_forward_pre_hook(lambda _, inputs: scored.append(inputs[0].shape[1]))
    expected = [model.video_tokens(video, question, return_map=True) for video in videos for question in questions]
    assert scored == [6, 6, 4, 4]
    model.video_sides = VideoSideCache(10**8)
    scored.clear()
    found = [model.video_tokens(video, question, return_map=True) for video in videos for question in questions]
    assert scored == [6, 4]
    for one, other in zip(expected, found):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.map, other.map)


def test_a_video_tokenizer_of_other_channels_is_refused(model):
    other = LinVT(LinVTConfig(hidden_size=16, num_queries=(4, 2, 1), num_layers=1))
    with pytest.raises(ValueError, match=r"for C = 16 channels.*has C = 64"):
        VideoLLM(model.backbone, other)


def test_training_moves_linvt_and_leaves_the_llm_frozen(model):
    batch = collate([visit(1, 4, ("star", "red"))], model.backbone)
    model(batch).answer_nll.backward()
    assert all(p.grad is not None for p in model.video_tokenizer.parameters())
    assert all(p.grad is None for p in model.backbone.model.parameters())


def test_the_fingerprint_of_the_tiny_model_is_stable(directory):
    assert vision_fingerprint(str(directory)) == vision_fingerprint(str(directory))

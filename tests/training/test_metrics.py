import json

import pytest

from linvt.annotations import Turn
from linvt.backbones import load_backbone
from linvt.shards import read_cache
from linvt.training.batches import Visit, collate
from linvt.training.flops import FlopCounter
from linvt.training.metrics import MetricsLog, last_training_line, read_metrics
from linvt.training.plots import plot_losses
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVTConfig, build_video_tokenizer


def test_a_resumed_log_drops_what_will_come_again(tmp_path):
    log = MetricsLog(tmp_path, after_step=0)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1.0 / step, "learning_rate": 0.1})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # A kill in the middle of a line.
    log = MetricsLog(tmp_path, after_step=3)
    log.write({"step": 4, "loss": 7.0, "learning_rate": 0.1})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1.0 / 3),
        (4, 7.0),
    ]


def test_the_newest_training_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_training_line(path) is None
    path.write_text("")
    assert last_training_line(path) is None
    lines = [{"step": step, "loss": float(step)} for step in range(2000)] + [{"step": 1999, "eval_loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2000, "loss": 1')
    assert last_training_line(path) == {"step": 1999, "loss": 1999.0}


def test_loss_curves_are_drawn(tmp_path):
    assert plot_losses(tmp_path) is None
    lines = [{"step": step, "loss": 1.0 / step, "learning_rate": 0.1} for step in range(1, 40)]
    lines += [{"step": 20, "eval_loss": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = plot_losses(tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["linvt", "avg"])
def test_flops_are_parameters_times_tokens(inputs, kind):
    backbone = load_backbone(inputs.backbone, parts=("llm",))
    config = LinVTConfig(
        hidden_size=64, kind=kind, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=8
    )
    model = VideoLLM(backbone, build_video_tokenizer(config))
    cache = read_cache(inputs.cache)
    turns = (Turn(question="is it red ?", answer="no"), Turn(question="what color ?", answer="blue"))
    # 3 and 4 frames of 4 tokens.
    videos = [cache.get(cache.video_ids[video_id]) for video_id in ("videos/000.mp4", "videos/001.mp4")]
    batch = collate([Visit(video=video, turns=turns, caption="a blue ball") for video in videos], backbone)
    counter = FlopCounter(model)

    language_model = backbone.model.get_decoder()
    llm = sum(p.numel() for name, p in language_model.named_parameters() if not name.startswith("embed_tokens"))
    head = backbone.model.get_output_embeddings().weight.numel()
    text = sum(len(sequence.before) + len(sequence.after) for sequence in batch.sequences)
    visual = 4 * 6 if kind == "linvt" else 2 * 3 + 2 * 4
    assert counter.sequence_tokens(batch) == text + visual
    expected = 4 * llm * (text + visual) + 2 * llm * int(batch.caption_mask.sum()) + 4 * head * 8
    if kind == "linvt":
        refiner, aggregator = (
            sum(p.numel() for p in module.parameters())
            for module in (model.video_tokenizer.refiner, model.video_tokenizer.aggregator)
        )
        expected += 6 * refiner * (3 + 4) * 4 + 6 * aggregator * visual
    assert counter.flops(batch, answer_tokens=8) == expected

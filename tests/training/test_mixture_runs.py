"""Whole runs on mixtures of files and conversations."""

import json
from dataclasses import replace

import pytest
import torch

from linvt.lora import adapted_modules
from linvt.training.checkpoint import latest_checkpoint, load_checkpoint
from linvt.training.loop import count_steps, load_visits
from linvt.training.metrics import read_metrics
from linvt.video_llm import VideoLLM
from pipelines.train import train
from tests.training.inputs import small_config
from tests.training.test_loop import final_tensors, reproducible_lines, run


@pytest.fixture
def mixture(inputs, tmp_path):
    """Stage 2 on questions of our own and, half as often, on conversations about some of the same videos."""
    conversation = [
        {"from": "human", "value": "<video>\nwhat color is the ball ?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "does it move ?"},
        {"from": "gpt", "value": "no"},
    ]
    rows = [{"video": f"{i:03d}.mp4", "conversations": conversation} for i in (0, 4, 5, 9)]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    return small_config(
        inputs,
        tmp_path / "out",
        stage=2,
        annotations=(inputs.annotations, str(tmp_path / "chat.json")),
        format=("linvt", "llava"),
        media_prefix=("", "videos/"),
        mixture_weights=(1.0, 0.5),
        turns_per_visit=3,
        steps=None,
        epochs=1.5,
        length_grouping="frames-text",
        lora_dropout=0.1,
        eval_annotations=(inputs.annotations,),
        eval_visits=2,
        eval_answers=2,
        # Held-out files have formats and prefixes of their own.
        eval_format=("linvt",),
    )


def test_a_mixture_resumes_bit_for_bit(mixture, tmp_path):
    visits = load_visits(mixture)
    assert (len(visits), visits.samples_per_epoch) == (18, 16)
    assert count_steps(mixture, visits) == 6
    whole = run(replace(mixture, out=str(tmp_path / "whole")))
    lost = run(mixture, lost_at=5)
    cursor = load_checkpoint(latest_checkpoint(lost))[0].cursor
    # The epoch is the mixture's: 16 samples are one.
    assert (cursor.samples_consumed, cursor.epoch) == (16, 1)
    run(mixture)
    expected, resumed = final_tensors(whole), final_tensors(lost)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert reproducible_lines(lost) == reproducible_lines(whole)


def test_other_weights_are_other_data(mixture):
    run(mixture, lost_at=3)
    with pytest.raises(ValueError, match="was trained on other samples"):
        run(replace(mixture, mixture_weights=(1.0, 2.0)))


def test_each_question_under_its_own_video_tokens_is_another_run(mixture, tmp_path):
    first, each = (
        reproducible_lines(
            run(replace(mixture, out=str(tmp_path / how), conversation_instruction=how, eval_annotations=()))
        )
        for how in ("first", "each")
    )
    assert [line["samples"] for line in first] == [line["samples"] for line in each]
    assert [line["loss"] for line in first] != [line["loss"] for line in each]


def test_cut_answers_are_counted_and_a_question_without_room_is_an_error(inputs, tmp_path):
    row = {"media": "videos/001.mp4", "qa": [{"question": "is it red ? " * 9, "answer": "no"}]}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    config = small_config(
        inputs,
        tmp_path / "out",
        stage=2,
        annotations=(inputs.annotations, str(tmp_path / "long.jsonl")),
        max_answer_tokens=1,
        max_sequence_tokens=30,
        steps=2,
    )
    with pytest.raises(ValueError, match=r"1 questions leave no room .* 30 \(videos/001\.mp4 in .*long\.jsonl\)"):
        run(config)
    lines = reproducible_lines(run(replace(config, annotations=(inputs.annotations,))))
    assert len(lines) == 2
    # Every answer has its word and its end, and loses the end.
    cut = [line["answers_cut"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert all(4 <= count <= 8 for count in cut)
    uncut = run(small_config(inputs, tmp_path / "uncut", stage=2, steps=2))
    assert lines[0]["loss"] != reproducible_lines(uncut)[0]["loss"]


def test_only_the_layers_that_are_named_get_adapters(inputs, tmp_path):
    config = small_config(inputs, tmp_path / "out", stage=2, steps=2, lora_targets=("q_proj", "mlp.down_proj"))
    out = run(config)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in final_tensors(out) if ".lora_" in name}
    assert adapted == {"q_proj", "down_proj"}
    loaded = VideoLLM.from_pretrained(out / "model", parts=("llm",))
    assert {name.rpartition(".")[2] for name in adapted_modules(loaded.backbone)} == adapted
    # Another run may go on with them, but not with others.
    onward = replace(config, init_from=str(out / "model"), steps=1, lora_targets=())
    assert any(".lora_" in name for name in final_tensors(run(replace(onward, out=str(tmp_path / "on")))))
    with pytest.raises(ValueError, match="are not the layers that have adapters in --init-from"):
        run(replace(onward, out=str(tmp_path / "other"), lora_targets=("v_proj",)))
    with pytest.raises(ValueError, match=r"no linear layers \['query'\] in its LLM; it has \['down_proj', 'gate_proj'"):
        run(replace(config, out=str(tmp_path / "none"), lora_targets=("query",)))


def test_stage_2_without_stage_1_warns(inputs, tmp_path, caplog):
    train(small_config(inputs, tmp_path / "out", stage=2, steps=1))
    assert "stage 2 without --init-from: LinVT starts untrained" in caplog.text
    caplog.clear()
    onward = str(tmp_path / "out" / "model")
    train(small_config(inputs, tmp_path / "on", stage=2, steps=1, init_from=onward))
    assert "--init-from" not in caplog.text

"""Whole runs on mixtures of files and conversations."""

import json
from dataclasses import replace

import pytest
import torch

from linvt.training.checkpoint import latest_checkpoint, load_checkpoint
from linvt.training.loop import count_steps, load_visits
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

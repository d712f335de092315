import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from linvt.command import parse
from linvt.training.config import SAME_ON_RESUME, TrainConfig, to_json
from linvt.video_tokenizer import LinVTConfig

REPOSITORY = Path(__file__).parents[2]


def _config(**fields):
    return TrainConfig(**{"stage": 1, "cache": "c", "annotations": ("a",), "backbone": "tiny", "out": "o"} | fields)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", (0, 0)), ("1", (1, 1)), ("4", (4, 4)), ("1:4", (1, 4)), ("2:2", (2, 2))]
)
def test_numbers_of_workers(text, expected):
    assert _config(num_workers=text, visits_per_batch=12).worker_range == expected


@pytest.mark.parametrize("text", ["", "two", "-1", "1:", ":2", "3:2", "0:2", "1:2:3", "1.5"])
def test_numbers_of_workers_that_make_no_sense(text):
    with pytest.raises(ValueError, match="--num-workers must"):
        _config(num_workers=text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"annotations": ()}, "--annotations needs"),
        ({"visits_per_batch": 0}, "--visits-per-batch must be at least 1, got 0"),
        ({"clip_grad_norm": -1.0}, "--clip-grad-norm must not be negative"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"epochs": 0.0}, "--epochs must be more than 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be more than 0"),
        ({"micro_batch": 0}, "--micro-batch must be at least 1"),
        (
            {"micro_batch": 1, "num_workers": "1:4", "visits_per_batch": 8, "stage": 2},
            "does not divide into 3 workers, and --micro-batch needs equal shares",
        ),
        ({"mixture_weights": (1.0, 0.0)}, "--mixture-weights must be more than 0"),
        ({"max_left_out_share": 1.5}, "--max-left-out-share must be from 0 to 1"),
        ({"precision": "bf16"}, "--precision bf16 needs --zero-stage"),
        ({"zero_stage": 2}, "--zero-stage 2 needs --precision bf16"),
        ({"num_workers": "4", "visits_per_batch": 3}, "less than the 4 workers"),
        ({"num_workers": "1:4", "visits_per_batch": 8}, "does not divide into 3 workers"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        _config(**fields)


def test_stage_2_takes_uneven_shares():
    assert _config(stage=2, num_workers="1:4", visits_per_batch=8).worker_range == (1, 4)


def test_the_video_tokenizer_s_flags_are_its_configuration():
    ours = {field.name: field.default for field in dataclasses.fields(LinVTConfig) if field.name != "hidden_size"}
    assert _config().video_tokenizer_fields == ours


def test_what_decides_the_result_must_be_the_same_on_resume():
    config = _config()
    earlier = to_json(config)
    assert config.changed_since(earlier) == []
    assert _config(num_workers="2", log_every=3, save_every=7, out="elsewhere").changed_since(earlier) == []
    (change,) = _config(seed=1).changed_since(earlier)
    assert change == "--seed: 0 then, 1 now"
    assert set(SAME_ON_RESUME) < {field.name for field in dataclasses.fields(TrainConfig)}
    linvt_fields = {field.name for field in dataclasses.fields(TrainConfig) if field.name.startswith("linvt_")}
    assert linvt_fields < set(SAME_ON_RESUME)


def test_the_flags_load_without_torch():
    code = "import sys, linvt.command, jobs.train; print('torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_mixture_s_flags_are_one_for_all_files_or_one_for_each():
    flags = "--stage 2 --cache c --backbone tiny --out o --annotations a b --format llava auto --mixture-weights 1 0.5"
    config = parse(TrainConfig, [*flags.split(), "--media-prefix", "", "b/"])
    assert (config.annotations, config.format, config.media_prefix) == (("a", "b"), ("llava", "auto"), ("", "b/"))
    assert config.mixture_weights == (1.0, 0.5)


@pytest.mark.parametrize("name", ["tiny-stage1", "tiny-stage2"])
def test_shipped_recipes_parse(name):
    recipe = tomllib.loads((REPOSITORY / "jobs" / "configs" / f"{name}.toml").read_text())
    flags = ["--cache", "c", "--annotations", "a.jsonl", "--out", "o"]
    config = parse(TrainConfig, flags, recipe=recipe)
    assert config.stage == int(name[-1])
    assert config.backbone == "tiny"
    LinVTConfig(hidden_size=128, **config.video_tokenizer_fields)

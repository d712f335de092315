"""The recipes for the paper's six image-LLMs: they parse, agree on what the paper says, and say whose a number is."""

import tomllib
from pathlib import Path

import pytest

from linvt.command import parse
from linvt.training.config import TrainConfig
from linvt.video_tokenizer import LinVTConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
# The hidden sizes of their LLMs, and how many tokens these read.
LLMS = {
    "aquila": (1536, 32768),
    "blip3": (3072, 4096),
    "internvl2": (4096, 32768),
    "mipha": (2560, 2048),
    "molmo": (3584, 4096),
    "qwen2-vl": (3584, 32768),
}
RECIPES = [(name, stage) for name in LLMS for stage in (1, 2)]


def _read(name: str, stage: int) -> tuple[dict, TrainConfig]:
    recipe = tomllib.loads((CONFIGS / name / f"paper-stage{stage}.toml").read_text())
    flags = ["--cache", "c", "--annotations", "a.csv", "b.jsonl", "--format", "auto", "--out", "o"]
    return recipe, parse(TrainConfig, flags + (["--init-from", "m"] if stage == 2 else []), recipe=recipe)


def test_there_are_two_for_each_of_the_six():
    found = {(path.parent.name, path.stem) for path in CONFIGS.glob("*/*.toml")}
    assert found == {(name, f"paper-stage{stage}") for name, stage in RECIPES}


@pytest.mark.parametrize(("name", "stage"), RECIPES)
def test_a_recipe_parses_to_what_it_says(name, stage):
    recipe, config = _read(name, stage)
    assert config.stage == stage
    for key, value in recipe.items():
        assert getattr(config, key) == (tuple(value) if isinstance(value, list) else value), key
    hidden_size, context = LLMS[name]
    tokenizer = LinVTConfig(hidden_size=hidden_size, **config.video_tokenizer_fields)
    assert hidden_size % tokenizer.num_heads == 0
    assert config.max_sequence_tokens is not None
    assert tokenizer.num_video_tokens + 512 < config.max_sequence_tokens <= context


@pytest.mark.parametrize("name", LLMS)
def test_the_paper_s_numbers_are_in_all_of_them(name):
    _, config = _read(name, 1)
    assert (config.linvt_num_layers, config.linvt_num_heads, config.linvt_top_k) == (4, 8, 2048)
    assert (config.linvt_num_queries, config.linvt_multi_scale, config.linvt_kind) == ((64, 32, 16), "C", "linvt")
    # Stage 2 takes LinVT from stage 1's model, and a flag that says otherwise would be refused.
    assert not [key for key in _read(name, 2)[0] if key.startswith("linvt_")]


@pytest.mark.parametrize(("name", "stage"), RECIPES)
def test_every_setting_is_marked_as_the_paper_s_or_ours(name, stage):
    said_by = None
    for block in (CONFIGS / name / f"paper-stage{stage}.toml").read_text().split("\n\n")[1:]:
        comment = block.splitlines()[0]
        assert comment.startswith(("# Paper", "# Ours")), block
        said_by = comment[2:].split(":")[0].split(",")[0].strip()
        assert said_by in ("Paper", "Ours")
    assert said_by is not None

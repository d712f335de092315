"""The card (README.md) of a trained model: what it is, what it learned from, how that went, and the command."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What a card tells of a run."""

    config: Any
    """The run's TrainConfig."""
    step: int
    num_visits: int
    num_left_out: int
    metrics: Sequence[Mapping[str, Any]]
    """The run's lines of metrics.jsonl up to `step`."""


def model_card(model_config: Mapping[str, Any], training: Training | None = None) -> str:
    """The card of a model whose config.json is `model_config`; without `training`, where nothing is known of it."""
    image_llm, linvt = model_config["backbone"], model_config["video_tokenizer"]
    front = ["library_name: linvt", "pipeline_tag: video-text-to-text"]
    if image_llm.count("/") == 1 and not image_llm.startswith((".", "/")):
        front.append(f"base_model: {image_llm}")
    parts = "LinVT and a LoRA adapter" if model_config["adapter"] else "LinVT"
    lines = ["---", *front, "tags: [linvt, video]", "---", "", f"# {parts} for {image_llm}", ""]
    lines += [
        f"A video tokenizer ([LinVT](https://arxiv.org/abs/2412.05185)) trained for the image-LLM `{image_llm}`,",
        "whose own weights are not in here. `VideoLLM.from_pretrained(DIRECTORY)` of the `linvt` package brings both",
        "together" + ("; PEFT alone can load `adapter/`." if model_config["adapter"] else "."),
    ]
    if training is not None:
        lines += _told(training)
    lines += ["", "## LinVT", "", *_table(("setting", "value"), linvt.items())]
    feature = model_config["extraction"].get("feature", {})
    if feature:
        lines += ["", "## Frames", "", *_table(("setting", "value"), feature.items())]
    return "\n".join(lines) + "\n"


def command_of(config: Any) -> str:
    """The command line of a run: what differs from the flags' defaults."""
    words = ["python", "jobs/train.py"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None or value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _told(training: Training) -> list[str]:
    config = training.config
    losses = [line for line in training.metrics if "loss" in line]
    validations = [line for line in training.metrics if "eval_loss" in line]
    stage = {1: "1 (alignment: captions)", 2: "2 (instruction tuning: questions)"}[config.stage]
    data = ", ".join(f"`{Path(name).name}`" for name in config.annotations)
    rows: list[tuple[str, Any]] = [
        ("stage", stage),
        ("annotations", data),
        ("visits of an epoch", f"{training.num_visits:,}, and {training.num_left_out:,} annotated media left out"),
        ("steps", f"{training.step:,} of {config.visits_per_batch} visits"),
    ]
    if losses:
        rows.append(("loss, first → last", f"{losses[0]['loss']:.4f} → {losses[-1]['loss']:.4f}"))
    if validations:
        last = validations[-1]
        held_out = ", ".join(f"`{Path(name).name}`" for name in config.eval_annotations)
        told = ", ".join(f"{name.removeprefix('eval_')} {last[name]:.4f}" for name in last if name.startswith("eval_"))
        rows.append(("validation", f"{told} at step {last['step']:,} on {held_out}"))
    if config.init_from is not None:
        rows.append(("started from", f"`{config.init_from}`"))
    return ["", "## Training", "", *_table(("", ""), rows), "", "```sh", command_of(config), "```"]


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> list[str]:
    shown = [(name, str(value).replace("|", "\\|")) for name, value in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown)]

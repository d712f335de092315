"""`python -m linvt.backbones check ID-OR-DIR`: does an image-LLM load and behave, before anything is built on it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from linvt.command import run


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckConfig:
    """What to check, and where."""

    backbone: Annotated[str, tyro.conf.Positional]
    """A hub id, a directory in the published layout, or "tiny"."""
    image: Path | None = None
    """A picture to caption; by default a red circle is drawn."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_new_tokens: int = 48
    """Tokens of the caption."""


def _main(config: CheckConfig) -> dict[str, Any]:
    import torch

    from linvt.backbones.checking import check_backbone

    report = check_backbone(
        config.backbone,
        image=config.image,
        device=config.device,
        dtype=getattr(torch, config.dtype),
        max_new_tokens=config.max_new_tokens,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if report.failed:
        raise ValueError(f"{config.backbone}: failed: {'; '.join(check.name for check in report.failed)}")
    doubts = [check.name for check in report.checks if not check.passed]
    return {**report.facts, "checks": len(report.checks), "doubts": doubts, "caption": report.caption}


if __name__ == "__main__":
    if sys.argv[1:2] != ["check"]:
        sys.exit("usage: python -m linvt.backbones check ID-OR-DIR [--help]")
    del sys.argv[1]
    run(CheckConfig, _main, __doc__ or "")

"""Train: a cache of frozen tokens and annotations in, a video-LLM out."""

from typing import Any

from linvt.command import run
from linvt.training.config import TrainConfig


def main(config: TrainConfig) -> dict[str, Any]:
    from pipelines.train import train

    return train(config)


if __name__ == "__main__":
    run(TrainConfig, main, description="Train LinVT on cached vision tokens: stage 1 aligns it, stage 2 tunes it.")

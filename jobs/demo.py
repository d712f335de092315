"""Demo: render, extract, train both stages briefly, evaluate, and serve one answer with its evidence."""

from typing import Any

from linvt.command import run
from pipelines.demo_config import DemoConfig


def main(config: DemoConfig) -> dict[str, Any]:
    from pipelines.demo import demo

    return demo(config)


if __name__ == "__main__":
    run(DemoConfig, main, description="Run the whole job, end to end, on rendered videos and a tiny image-LLM.")

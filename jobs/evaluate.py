"""Evaluate: questions in, answers with their scores out."""

from typing import Any

from linvt.command import run
from linvt.evaluation.config import EvaluateConfig


def main(config: EvaluateConfig) -> dict[str, Any]:
    from pipelines.evaluate import evaluate

    return evaluate(config)


if __name__ == "__main__":
    run(EvaluateConfig, main, description="Ask a model or an endpoint the questions of a benchmark and score them.")

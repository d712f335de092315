"""Serve: a trained model behind an OpenAI-compatible endpoint."""

from typing import Any

from linvt.command import run
from linvt.serving.config import ServeConfig


def main(config: ServeConfig) -> dict[str, Any]:
    from pipelines.serve import serve_until_stopped

    return serve_until_stopped(config)


if __name__ == "__main__":
    run(ServeConfig, main, description="Serve a trained model behind an OpenAI-compatible endpoint until stopped.")

"""Visualize: which frames, shots and patches of a video an answer came from, as pictures and one page."""

from typing import Any

from linvt.command import run
from linvt.visualization.config import VisualizeConfig


def main(config: VisualizeConfig) -> dict[str, Any]:
    from linvt.visualization.visualize import visualize

    return visualize(config)


if __name__ == "__main__":
    run(VisualizeConfig, main, description="Draw where in a video the answer to a question came from.")

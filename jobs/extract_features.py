"""Extract features: videos in, shards of frozen vision tokens out."""

from typing import Any

from linvt.command import run
from linvt.extraction.config import ExtractConfig


def main(config: ExtractConfig) -> dict[str, Any]:
    from pipelines.extract import extract

    return extract(config)


def forecast(config: ExtractConfig) -> dict[str, Any]:
    if not config.rethreshold:
        return {}
    from linvt.extraction import rethreshold

    return {"rethresholding": rethreshold.forecast(config)}


if __name__ == "__main__":
    run(
        ExtractConfig,
        main,
        description="Decode each video once, encode its frames, commit the tokens to shards.",
        forecast=forecast,
    )

"""Render the tiny world: H.264 videos of scenes in motion with captions and questions, and images with questions."""

from linvt.command import run
from linvt.tiny.world_config import WorldConfig


def main(config: WorldConfig) -> dict:
    from linvt.tiny.world import make_world

    return make_world(config)


if __name__ == "__main__":
    run(WorldConfig, main, __doc__ or "")

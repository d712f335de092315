"""Train the embedded tiny image-LLM from scratch on rendered images."""

from linvt.command import run
from linvt.tiny.image_llm_config import ImageLLMTrainConfig


def main(config: ImageLLMTrainConfig) -> dict:
    from linvt.tiny.train_image_llm import train

    return train(config)


if __name__ == "__main__":
    run(ImageLLMTrainConfig, main, __doc__ or "")

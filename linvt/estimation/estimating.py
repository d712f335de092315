"""One estimate: corpus, image-LLM and constants brought together."""

from typing import Any

import torch

from linvt.estimation.arithmetic import Estimate, VideoTokenizerSize, estimate
from linvt.estimation.calibration import calibrate
from linvt.estimation.config import EstimateConfig
from linvt.estimation.constants import Constants, assumed_constants, read_constants, write_constants
from linvt.estimation.corpus import Corpus, corpus_of
from linvt.estimation.image_llms import IMAGE_LLMS, ImageLLM
from linvt.estimation.report import outcome, table
from linvt.video_tokenizer import LinVT, LinVTConfig


def run_estimate(config: EstimateConfig) -> dict[str, Any]:
    """Prints the tables for people and returns the outcome."""
    result, corpus, image_llm, constants = make_estimate(config)
    print(f"{corpus.videos:,} videos of {corpus.seconds:.1f} s, {image_llm.name}, {config.num_frames} frames\n")
    print(table(result))
    print(f"\nA sample takes {result.sample_megabytes:.2f} MB. {result.verdict[0].upper()}{result.verdict[1:]}.\n")
    for name, source in constants.sources.items():
        print(f"{name} = {getattr(constants, name):.4g}: {source}")
    return outcome(result, corpus, image_llm, constants)


def make_estimate(config: EstimateConfig) -> tuple[Estimate, Corpus, ImageLLM, Constants]:
    """Raises ValueError for a corpus, an image-LLM or constants that cannot be used."""
    if not config.calibrate and config.backbone not in IMAGE_LLMS:
        raise ValueError(
            f"--backbone {config.backbone}: its size is not known without looking at it; give --calibrate, which loads "
            f"it here, or one of {', '.join(IMAGE_LLMS)}"
        )
    corpus = corpus_of(config)
    if config.calibrate:
        image_llm, constants = calibrate(config)
        if config.write_constants:
            write_constants(config.write_constants, constants)
    else:
        image_llm = IMAGE_LLMS[config.backbone]
        constants = read_constants(config.constants) if config.constants else assumed_constants(config.gpu)
    size = video_tokenizer_size(image_llm.hidden_size)
    return estimate(config, corpus, image_llm, size, constants), corpus, image_llm, constants


def video_tokenizer_size(hidden_size: int) -> VideoTokenizerSize:
    """Of LinVT's defaults, counted without making its weights."""
    with torch.device("meta"):
        made = LinVT(LinVTConfig(hidden_size=hidden_size))
    refiner, aggregator = made.get_submodule("refiner"), made.get_submodule("aggregator")
    return VideoTokenizerSize(
        refiner=sum(parameter.numel() for parameter in refiner.parameters()),
        aggregator=sum(parameter.numel() for parameter in aggregator.parameters()),
        video_tokens=made.config.num_video_tokens,
    )

"""A model's own processor, without its video half: frames enter by the image path."""

from pathlib import Path
from typing import Any

from transformers import Idefics3Processor, ProcessorMixin
from transformers.models.auto import AutoImageProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from linvt.backbones.molmo2_processor import Molmo2BaseTile, Molmo2ForBaseTiles
from linvt.backbones.published import read_config


class PixtralForImages(ProcessorMixin):
    """Mistral 3's, whose own class needs torchvision: an image is its rows of [IMG], of which one stands for all here,
    ended by [IMG_BREAK], the last by [IMG_END]."""

    image_token = "[IMG]"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return "[IMG][IMG_END]"


_OTHER_CLASS: dict[str, type[ProcessorMixin]] = {
    # SmolVLM's own wants a package that spells out how many frames a video has; for images, it does what this one does.
    "smolvlm": Idefics3Processor,
    "mistral3": PixtralForImages,
    "molmo2": Molmo2ForBaseTiles,
}


def load_image_processor(directory: Path) -> Any:
    """The image processor of a checkpoint, on Pillow where it has that: equal pixels with and without torchvision."""
    if read_config(directory)["model_type"] == "molmo2":
        return Molmo2BaseTile.from_pretrained(directory)
    return AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=False)


def load_processor(directory: Path, config: Any) -> Any:
    """The processor of a checkpoint. Raises ValueError if Transformers has none for its architecture."""
    if config.model_type in _OTHER_CLASS:
        processor_class: Any = _OTHER_CLASS[config.model_type]
    elif type(config) in PROCESSOR_MAPPING:
        processor_class = PROCESSOR_MAPPING[type(config)]
    else:
        raise ValueError(f"{directory}: Transformers has no processor for model_type {config.model_type!r}")
    processor_class = _without_videos(processor_class)
    settings, _ = processor_class.get_processor_dict(directory)
    pieces = {
        "image_processor": load_image_processor(directory),
        "tokenizer": AutoTokenizer.from_pretrained(directory, trust_remote_code=False),
        "video_processor": None,
    }
    unknown = sorted(set(processor_class.get_attributes()) - set(pieces))
    if unknown:
        raise ValueError(f"{directory}: a processor with {unknown} is not supported; expected {sorted(pieces)}")
    return processor_class.from_args_and_dict([pieces[name] for name in processor_class.get_attributes()], settings)


def _without_videos(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`processor_class`, which may then have None for a video processor: that would need torchvision."""

    class WithoutVideos(processor_class):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    # Its init looks up its own signature by the class's `__init__`.
    WithoutVideos.__name__, WithoutVideos.__qualname__ = processor_class.__name__, processor_class.__qualname__
    return WithoutVideos

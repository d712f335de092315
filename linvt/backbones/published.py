"""Base of the adapters for checkpoints in a layout of their authors: Transformers' modules, filled by rules.

Shape legend: T frames, S×S pixels, N tokens a frame, C hidden size of the LLM.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights
from transformers.models.auto import AutoTokenizer

from linvt.backbones.base import Message, Prompt, VisionOptions
from linvt.backbones.checkpoint import Checkpoint, Rule, fill, rule_for
from linvt.backbones.conversation import SLOT, ConversationFormat
from linvt.backbones.frozen import FrozenBackbone, attention_for, checked_parts

Config = dict[str, Any]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class PublishedBackbone(FrozenBackbone):
    """See `Backbone`. `vision` turns pixels into frame tokens [T, N, C], `model` is the LLM; a part left out is None.

    A subclass says how to recognise its config.json, builds both parts from it, and gives the rules that fill them.
    """

    vision: nn.Module | None
    checkpoint: Checkpoint

    model_name: ClassVar[str]
    """As people call it."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        parts: frozenset[str],
        dtype: torch.dtype,
        device: torch.device,
        options: VisionOptions,
    ):
        super().__init__()
        self.name, self.parts, self.options, self._directory = name, checked_parts(parts), options, directory
        self.config = read_config(directory)
        self.check(self.config)
        if options.frame_side is not None:
            raise ValueError(f"{self.model_name} resizes every frame to one size; leave out frame_side")
        with _uninitialised(dtype, device):
            self.vision = self.build_vision(self.config) if "vision" in parts else None
            self.model = self.build_llm(self.config) if "llm" in parts else None
        self.checkpoint = Checkpoint(directory)
        fill(self, self.checkpoint, self.rules(self.config), parts)
        self.hidden_size = self.hidden_size_of(self.config)
        if self.model is not None and (directory / "generation_config.json").exists():
            self.model.generation_config = GenerationConfig.from_pretrained(directory)
        if self.vision is not None and options.reset_intermediate is not None:
            reset(self.vision.get_submodule("intermediate"), seed=options.reset_intermediate)
        self._freeze(device)

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def recognises(config: Config) -> bool:
        """Whether a config.json is of this layout, supported or not."""

    @staticmethod
    def check(config: Config) -> None:
        """Raises ValueError that names a variant of the layout which is not supported."""

    @staticmethod
    @abstractmethod
    def build_vision(config: Config) -> nn.Module:
        """Maps what `preprocessing` returns to frame tokens [T, N, C]. Its intermediate layer is `intermediate`."""

    @staticmethod
    @abstractmethod
    def build_llm(config: Config) -> nn.Module:
        """One of Transformers' CausalLM models."""

    @staticmethod
    @abstractmethod
    def rules(config: Config) -> Sequence[Rule]:
        """Where the checkpoint's tensors go, under `vision.` and `model.`."""

    @staticmethod
    def hidden_size_of(config: Config) -> int:
        return config["hidden_size"]

    @staticmethod
    @abstractmethod
    def preprocessing(config: Config) -> Callable[[np.ndarray], Tensor]: ...

    @property
    @abstractmethod
    def conversation(self) -> ConversationFormat: ...

    @classmethod
    def vision_tensors(cls, config: Config, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
        """Name and content of each tensor that frame tokens depend on."""
        rules = cls.rules(config)
        for name in checkpoint.names:
            rule = rule_for(name, rules)
            if rule is not None and rule.part == "vision" and rule.to is not None:
                yield name, checkpoint.read(name)

    # -- the rest follows ----------------------------------------------------------------------------------------------

    @cached_property
    def text_tokenizer(self) -> Any:
        found = [name for name in _TOKENIZER_FILES if (self._directory / name).exists()]
        if not found:  # Some tokenizers' classes would then know no text, and not say so.
            raise ValueError(f"{self._directory}: none of {_TOKENIZER_FILES}; expected a text tokenizer")
        if "tokenizer.json" in found:
            # AutoTokenizer goes by the config's model_type, and would rebuild some of what this file already says.
            return PreTrainedTokenizerFast.from_pretrained(self._directory)
        return AutoTokenizer.from_pretrained(self._directory, trust_remote_code=False)

    @property
    def stop_ids(self) -> list[int]:
        ids = [self.text_tokenizer.convert_tokens_to_ids(token) for token in self.conversation.stop]
        unknown = [
            token for token, i in zip(self.conversation.stop, ids) if i in (None, self.text_tokenizer.unk_token_id)
        ]
        if unknown:
            raise ValueError(f"{self.name}: its text tokenizer does not know the stop tokens {unknown}")
        return list(dict.fromkeys([*ids, *super().stop_ids]))

    def special_id(self, token: str) -> int:
        """The id of a special token; raises ValueError if the text tokenizer does not know it."""
        token_id = self.text_tokenizer.convert_tokens_to_ids(token)
        if token_id is None or token_id == self.text_tokenizer.unk_token_id:
            raise ValueError(f"{self.name}: its text tokenizer does not know the token {token!r}")
        return token_id

    @property
    def max_frame_side(self) -> int:
        return self.frame_side(self.config)

    @classmethod
    def frame_side(cls, config: Config) -> int:
        """`max_frame_side` of a model that need not be loaded."""
        return 2 * cls.preprocessing(config).side

    def _encode_batch(self, frames: np.ndarray) -> tuple[Tensor, tuple[int, int] | None]:
        pixels = self.preprocessing(self.config)(frames)
        tokens = self.encode_pixels(pixels)
        return tokens, self.grid(tokens.shape[1])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Frame tokens [T, N, C] of preprocessed frames [T, 3, S, S]."""
        self._need("vision")
        assert self.vision is not None
        return self.vision(pixels.to(self.device, self.dtype))

    def grid(self, num_tokens: int) -> tuple[int, int] | None:
        """(rows, columns) of a frame's tokens."""
        side = round(num_tokens**0.5)
        return side, side

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        pieces = self._render(messages, add_generation_prompt=True).split(SLOT)
        return Prompt(segments=tuple(tuple(self.text_ids(piece)) for piece in pieces))

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self.conversation.render(messages, add_generation_prompt=add_generation_prompt)


def read_config(directory: Path) -> Config:
    """The config.json of a checkpoint; raises ValueError where there is none."""
    path = directory / "config.json"
    if not path.exists():
        raise ValueError(f"{directory}: no config.json; expected an image-LLM's directory")
    return json.loads(path.read_text())


def from_config(model_class: Any, config: Any) -> nn.Module:
    """A Transformers model in the current default dtype, with the fastest attention that it offers."""
    attention = attention_for(model_class, torch.get_default_dtype(), torch.get_default_device())
    model = model_class._from_config(config, dtype=torch.get_default_dtype(), attn_implementation=attention)
    model.tie_weights()  # Else done with the initialisation, which is left out here.
    return model


def mlp(in_channels: int, out_channels: int) -> nn.Sequential:
    """LLaVA's projector "mlp2x_gelu": [..., in_channels] → [..., out_channels]."""
    return nn.Sequential(nn.Linear(in_channels, out_channels), nn.GELU(), nn.Linear(out_channels, out_channels))


def reset(module: nn.Module, *, seed: int) -> None:
    """Fresh weights: matrices N(0, 0.02²), norms 1, biases 0. The caller's random state stays untouched."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


@contextmanager
def _uninitialised(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Modules made in the block stand on `device` in `dtype`: weights unwritten, buffers as they should be."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), device:
            yield
    finally:
        torch.set_default_dtype(before)

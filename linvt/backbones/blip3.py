"""BLIP-3 (Salesforce/xgen-mm-phi3-mini-*-r-v1.5): SigLIP, a perceiver resampler and Phi-3.

Shape legend: T frames, S×S pixels, L latents (tokens a frame), C hidden size of the LLM, V vocabulary.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from torch import Tensor, nn
from transformers import Phi3Config, Phi3ForCausalLM, SiglipVisionConfig

from linvt.backbones.checkpoint import Checkpoint, Placed, Rule
from linvt.backbones.conversation import ConversationFormat
from linvt.backbones.perceiver import PerceiverResampler
from linvt.backbones.preprocessing import Squeeze
from linvt.backbones.published import Config, PublishedBackbone, from_config
from linvt.backbones.siglip import NAME, SiglipTower, siglip_config, siglip_preprocessing, siglip_rules

# `<image>`, its placeholder and the end of a chunk: tables of their own beside the LLM's.
_NUM_ADDED_TOKENS = 3
# Published configs name no sizes: these are the constants of the published code.
_RESAMPLER = {"num_vis_tokens": 128, "depth": 6, "heads": 16, "dim_head": 96, "ff_mult": 4}

_CONVERSATION = ConversationFormat(
    # The text tokenizer that the model was trained with puts a lone space first.
    begin=" ",
    system="<|system|>\n{}<|end|>\n",
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    user="<|user|>\n{}<|end|>\n",
    assistant="<|assistant|>\n{}<|end|>\n",
    after_media="\n",
    stop=("<|end|>",),
)


class _Vision(nn.Module):
    """Frame tokens [T, L, C] of pixels [T, 3, S, S]: the base tile, which holds the whole frame."""

    def __init__(self, tower: SiglipVisionConfig, hidden_size: int, resampler: Config):
        super().__init__()
        self.tower = SiglipTower(tower, num_layers=tower.num_hidden_layers, post_norm=True)
        self.intermediate = PerceiverResampler(
            channels=tower.hidden_size,
            out_channels=hidden_size,
            num_latents=resampler["num_vis_tokens"],
            num_layers=resampler["depth"],
            num_heads=resampler["heads"],
            head_channels=resampler["dim_head"],
            expansion=resampler["ff_mult"],
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.intermediate(self.tower(pixels))


class Blip3Backbone(PublishedBackbone):
    """BLIP-3, also called xGen-MM, of version 1.5. Its 128 tokens a frame have no order: `grid` is None.

    The base model, which knows no conversation, is spoken to as the instruct models are.
    """

    model_name = "BLIP-3"

    def __init__(self, directory: Path, **kwargs: Any):
        # A config.json may leave out which tower it is; the names of its tensors tell.
        if not any(name.startswith("vlm.vision_encoder.embeddings.") for name in Checkpoint(directory).names):
            raise ValueError(
                f"{directory}: an xgen-mm on another tower than SigLIP (r-v1) is not supported; use r-v1.5"
            )
        super().__init__(directory, **kwargs)

    @staticmethod
    def recognises(config: Config) -> bool:
        return config.get("model_type") == "xgenmm"

    @staticmethod
    def check(config: Config) -> None:
        tower = config.get("vision_encoder_config", {}).get("model_name", NAME)
        if tower != NAME:
            raise ValueError(f"an xgen-mm (BLIP-3) with the tower {tower!r} is not supported; expected {NAME}, r-v1.5")
        text = config.get("text_config", {})
        if text.get("model_type", "phi3") != "phi3" or not isinstance(text.get("initial_tokenizer_len"), int):
            raise ValueError(f"an xgen-mm (BLIP-3) with the LLM {text} is not supported; expected phi3, r-v1.5")

    @classmethod
    def hidden_size_of(cls, config: Config) -> int:
        return _llm(config).hidden_size

    @classmethod
    def build_vision(cls, config: Config) -> nn.Module:
        resampler = _RESAMPLER | config.get("vision_tokenizer_config", {})
        return _Vision(_tower(config), cls.hidden_size_of(config), resampler)

    @staticmethod
    def build_llm(config: Config) -> nn.Module:
        llm_config = _llm(config)
        llm: Any = from_config(Phi3ForCausalLM, llm_config)
        llm.lm_head = nn.Linear(llm_config.hidden_size, llm_config.vocab_size)  # Unlike Phi-3's, with a bias.
        return llm

    @staticmethod
    def rules(config: Config) -> Sequence[Rule]:
        num_base = config["text_config"]["initial_tokenizer_len"]

        def base(match: re.Match[str], tensor: Tensor) -> Iterable[Placed]:
            # Rows beyond the text tokenizer's are padding.
            return [Placed(f"model.{match[1]}", tensor[:num_base], first_row=0)]

        def added(match: re.Match[str], tensor: Tensor) -> Iterable[Placed]:
            return [Placed(f"model.{match[1]}.{match[2]}", tensor, first_row=num_base)]

        tokenizer = r"vlm\.vision_tokenizer\."
        llm = r"vlm\.lang_model\."
        return [
            *siglip_rules(r"vlm\.vision_encoder\.", num_layers=_tower(config).num_hidden_layers, post_norm=True),
            Rule("vision", rf"{tokenizer}(layers\.\d+)\.0\.(.*)", r"vision.intermediate.\1.attention.\2"),
            Rule("vision", rf"{tokenizer}(layers\.\d+)\.1\.(.*)", r"vision.intermediate.\1.feed_forward.\2"),
            Rule("vision", rf"{tokenizer}(latents|norm\..*|projection\..*)", r"vision.intermediate.\1"),
            Rule("llm", rf"{llm}(model\.embed_tokens\.weight|lm_head\.weight|lm_head\.bias)", base),
            Rule("llm", rf"{llm}(model\.embed_tokens)\.additional_embedding\.(weight)", added),
            Rule("llm", rf"{llm}(lm_head)\.additional_fc\.(weight|bias)", added),
            Rule("llm", rf"{llm}(model\.(?:layers|norm)\..*)", r"model.\1"),
        ]

    @staticmethod
    def preprocessing(config: Config) -> Squeeze:
        return siglip_preprocessing(_tower(config))

    @property
    def conversation(self) -> ConversationFormat:
        return _CONVERSATION

    @cached_property
    def text_tokenizer(self) -> Any:
        tokenizer: Any = super().text_tokenizer
        # Published for use without "legacy", where text behind a special token gets no space; tokenizer.json adds one.
        backend = tokenizer.backend_tokenizer
        if isinstance(backend.normalizer, normalizers.Sequence):
            kept = [step for step in backend.normalizer if not isinstance(step, normalizers.Prepend)]
            backend.normalizer = normalizers.Sequence(kept)
        return tokenizer

    def grid(self, num_tokens: int) -> None:
        return None


def _tower(config: Config) -> SiglipVisionConfig:
    return siglip_config(config.get("vision_encoder_config", {}))


def _llm(config: Config) -> Phi3Config:
    text = config["text_config"]
    return Phi3Config(**(text | {"vocab_size": text["initial_tokenizer_len"] + _NUM_ADDED_TOKENS}))

"""The model of a run: an image-LLM without its vision side, LinVT, and what the stage trains."""

import dataclasses
from typing import Any

import torch
from torch import nn

from linvt.backbones import load_backbone
from linvt.lora import add_lora
from linvt.losses import ContrastiveHead
from linvt.training.config import TrainConfig
from linvt.training.sequences import SequenceRules
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVTConfig, build_video_tokenizer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(config: TrainConfig, device: torch.device) -> VideoLLM:
    """The model to train, its trainable parameters marked. Initial weights follow from `config.seed`.

    Stage 1 trains LinVT and the head of the contrastive loss, stage 2 LinVT and LoRA adapters. Raises ValueError where
    `--init-from` and the other choices contradict each other.
    """
    torch.manual_seed(config.seed)
    dtype = _DTYPES[config.precision]
    if config.init_from is None:
        backbone = load_backbone(config.backbone, parts=("llm",), dtype=dtype, device=device)
        tokenizer_config = LinVTConfig(hidden_size=backbone.hidden_size, **config.video_tokenizer_fields)
        model = VideoLLM(backbone, build_video_tokenizer(tokenizer_config).to(device, dtype))
    else:
        model = VideoLLM.from_pretrained(
            config.init_from, parts=("llm",), dtype=dtype, device=device, backbone=config.backbone
        )
        _check_left_alone(config, model.video_tokenizer.config)
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        image_llm: Any = model.backbone.model
        image_llm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if config.stage == 2:
        _prepare_lora(config, model)
    elif config.is_contrastive:
        model.contrastive = ContrastiveHead(model.backbone.hidden_size).to(device, dtype)
    model.video_tokenizer.requires_grad_(True)
    set_training_mode(model, gradient_checkpointing=config.gradient_checkpointing)
    return model


def sequence_rules(config: TrainConfig, model: VideoLLM) -> SequenceRules:
    """How the run makes sequences of conversations."""
    tokenizer_config = model.video_tokenizer.config
    return SequenceRules(
        instruction=config.conversation_instruction,
        num_video_tokens=None if tokenizer_config.kind == "avg" else tokenizer_config.num_video_tokens,
    )


def _prepare_lora(config: TrainConfig, model: VideoLLM) -> None:
    adapters = _lora_parameters(model)
    if not adapters:
        add_lora(model.backbone, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
        adapters = _lora_parameters(model)
    for parameter in adapters:
        parameter.requires_grad_(True)


def _lora_parameters(model: VideoLLM) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]


def _check_left_alone(config: TrainConfig, found: LinVTConfig) -> None:
    """A --linvt-… flag that says something else than the model of --init-from would be ignored: say so instead."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name, value in config.video_tokenizer_fields.items():
        if value != defaults[f"linvt_{name}"] and value != getattr(found, name):
            raise ValueError(
                f"--linvt-{name.replace('_', '-')} {value} differs from the {getattr(found, name)} of --init-from "
                f"{config.init_from}; leave it out, or train without --init-from"
            )


def set_training_mode(model: VideoLLM, *, gradient_checkpointing: bool) -> None:
    """Training mode for what trains; the frozen LLM's own dropout stays off."""
    model.train()
    if not gradient_checkpointing:  # Transformers recomputes activations in training mode only.
        model.backbone.model.eval()
        for name, module in model.backbone.model.named_modules():
            if name.endswith("lora_dropout"):
                module.train()

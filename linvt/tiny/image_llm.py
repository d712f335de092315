"""The tiny image-LLM's architecture: LLaVA at a small size, saved as an ordinary Hugging Face directory.

Everything is a stock Transformers class (SigLIP vision tower, two-layer projector, Qwen2 decoder), so nothing that
loads it knows that it is ours.
"""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers.models.llava import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.qwen2 import Qwen2Config
from transformers.models.siglip import SiglipImageProcessorPil, SiglipVisionConfig
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from linvt.tiny.vocabulary import WORDS

IMAGE_SIZE_PX = 72
PATCH_SIZE_PX = 12
HIDDEN_SIZE = 128

SPECIAL_TOKENS = ("<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>", "<image>")
# One template serves images and videos: a media part is an `<image>` slot in front of the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] + ' ' }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ ' ' + part['text'] + ' ' }}{% else %}{{ ' <image> ' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[.,?!:;()\"'-]"), behavior="isolated")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<image>"],
        padding_side="left",
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE_PX,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def build_model(tokenizer: Any) -> LlavaForConditionalGeneration:
    """Random weights from the global torch seed: about 2.2M parameters, 36 tokens an image, C = 128."""
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            image_size=IMAGE_SIZE_PX,
            patch_size=PATCH_SIZE_PX,
            hidden_size=HIDDEN_SIZE,
            intermediate_size=4 * HIDDEN_SIZE,
            num_hidden_layers=4,
            num_attention_heads=4,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=3 * HIDDEN_SIZE,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(IMAGE_SIZE_PX // PATCH_SIZE_PX) ** 2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    generation: Any = model.generation_config
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    return model


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, directory: Path) -> None:
    model.save_pretrained(directory, safe_serialization=True)
    processor.save_pretrained(directory)

"""Tiny random image-LLMs of real architectures, saved as a Hugging Face directory, for tests that need a backbone.

Untrained, so their answers mean nothing; but every code path (loading by parts, image processing, chat template,
generation) is the one a published model takes.
"""

from pathlib import Path

IMAGE_TOKEN = "<image>"
_SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>", IMAGE_TOKEN, "<user>", "<assistant>")
_WORDS = (
    "a an and are at ball before after below above behind between black blue box brown car circle clip color colour "
    "count cross cube describe dog down did do does event fast first frame front gray green happen happens how image "
    "in into is it large last left line many middle move moves moving near next no not number object objects of on "
    "one or orange order pink purple red right ring scene second shape shot shots shows size slow small square star "
    "still stop the then there third three time to top triangle turn two up video was were what when where which "
    "white who why with yellow yes zero four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9 . , ? ! : ; ' - ( )"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<user> ' if message['role'] == 'user' else '<assistant> ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ ' <eos> ' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def save_tiny_llava(
    directory: Path | str,
    *,
    image_size: int = 64,
    patch_size: int = 8,
    hidden_size: int = 64,
    num_layers: int = 2,
    seed: int = 0,
    initializer_range: float = 0.35,
) -> Path:
    """Saves a LLaVA (SigLIP vision, Qwen2 text) with random weights, its tokenizer, processor and chat template.

    A frame becomes (image_size / patch_size)² tokens of hidden_size channels: 8×8×64 by default. The initial weights
    are wide (0.35, where the usual 0.02 would hide errors of position: tokens would hardly differ). Equal arguments
    give equal files; the caller's random state stays untouched.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
        Qwen2Config,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    directory = Path(directory)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((*_SPECIAL_TOKENS, *_WORDS.split())))}
    word_level = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    word_level.add_special_tokens(list(_SPECIAL_TOKENS))
    text_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )

    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=patch_size,
            initializer_range=initializer_range,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(vocabulary),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=initializer_range,
            tie_word_embeddings=False,
            bos_token_id=vocabulary["<bos>"],
            eos_token_id=vocabulary["<eos>"],
            pad_token_id=vocabulary["<pad>"],
        ),
        image_token_id=vocabulary[IMAGE_TOKEN],
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
        initializer_range=initializer_range,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).eval()
        # SigLIP initialises some of its weights by its own rule, whatever the config says.
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=initializer_range)
    model.generation_config.bos_token_id = vocabulary["<bos>"]
    model.generation_config.eos_token_id = vocabulary["<eos>"]
    model.generation_config.pad_token_id = vocabulary["<pad>"]
    model.save_pretrained(directory)

    LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": image_size, "width": image_size}),
        tokenizer=text_tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory

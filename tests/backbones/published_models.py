"""The golden checkpoints of published layouts, each with a text tokenizer that knows its special tokens."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.backbones.text_tokenizer import save_with_text_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
_MIPHA = ("<pad>", "<|endoftext|>")
_INTERNVL2 = ("<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>")
SPECIAL_TOKENS = {
    "aquila": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "blip3": ("<pad>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "internvl2_internlm2": _INTERNVL2,
    "internvl2_qwen2": _INTERNVL2,
    "mipha": _MIPHA,
    "mipha_phi2": _MIPHA,
    "molmo": ("<|endoftext|>",),
}
MOLMO_EMBEDDING_SIZE = 160
_MOLMO_NEW_TOKENS = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>"]


def save_published(model: str, directory: Path) -> Path:
    save_with_text_tokenizer(GOLDEN / model, directory, SPECIAL_TOKENS[model])
    if model == "molmo":
        add_molmo_tokens(directory)
    return directory


def add_molmo_tokens(directory: Path, *, first: int = MOLMO_EMBEDDING_SIZE) -> None:
    """Molmo's tokenizer is filled up to `first`, where its new tokens begin."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    fillers = [f"|<EXTRA_TOKENS_{i}>|" for i in range(first - len(tokenizer))]
    tokenizer.add_tokens(fillers + _MOLMO_NEW_TOKENS, special_tokens=True)
    tokenizer.save_pretrained(directory)

"""A text tokenizer with one token a character, for the tiny golden checkpoints, which come without one."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))


def save_with_text_tokenizer(
    golden: Path, directory: Path, special_tokens: Sequence[str], *, eos_token: str | None = None
) -> Path:
    """A copy of a golden checkpoint, and `save_text_tokenizer` in it."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(golden / file, directory / file)
    save_text_tokenizer(directory, special_tokens, eos_token=eos_token)
    return directory


def save_text_tokenizer(directory: Path, special_tokens: Sequence[str], *, eos_token: str | None = None) -> None:
    """Printable ASCII and `special_tokens`, at most 14 of them, which come first."""
    vocabulary = {token: i for i, token in enumerate((*special_tokens, *_CHARACTERS))}
    by_character = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))  # pyright: ignore[reportCallIssue]
    by_character.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore
    by_character.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    by_character.add_special_tokens(list(special_tokens))
    PreTrainedTokenizerFast(tokenizer_object=by_character, eos_token=eos_token or special_tokens[0]).save_pretrained(
        directory
    )

"""A text tokenizer from a `tokenizer.model` of SentencePiece, without that package and without a model's own code.

It reads the protocol buffer itself, and hands its pieces and the merges that follow from them to `tokenizers`.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
_SPACE = "▁"
# Values of ModelProto.SentencePiece.Type and TrainerSpec.ModelType.
_NORMAL, _USER_DEFINED = 1, 4
_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclass(slots=True)
class SentencePieceModel:
    """What a `tokenizer.model` says. What it leaves out has the defaults of SentencePiece's own schema."""

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = _UNIGRAM
    byte_fallback: bool = False
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Raises ValueError if the file is no model of SentencePiece."""
    model = SentencePieceModel()
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                model.pieces.append(Piece(text=piece[1].decode(), score=score, kind=piece.get(3, _NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
                model.model_type = trainer.get(3, model.model_type)
                model.byte_fallback = bool(trainer.get(35, model.byte_fallback))
            elif number == 3:
                normalizer = dict(_fields(value))
                model.precompiled_charsmap = normalizer.get(2, model.precompiled_charsmap)
                model.add_dummy_prefix = bool(normalizer.get(3, model.add_dummy_prefix))
                model.remove_extra_whitespaces = bool(normalizer.get(4, model.remove_extra_whitespaces))
                model.escape_whitespaces = bool(normalizer.get(5, model.escape_whitespaces))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is no model of SentencePiece ({error}); download it again") from error
    return model


def tokenizer_from_sentencepiece(path: Path, added: dict[int, AddedToken]) -> PreTrainedTokenizerFast:
    """The tokenizer of a BPE model that leaves its text as it is, but for spaces.

    Text is cut at the tokens of `added`, and each stretch between them is encoded for itself. Their ids may be new, or
    those of pieces that they take the place of. Nothing is put before or behind a text: a prompt begins with `BEGIN`
    where it says so. Raises ValueError for a model that works otherwise.
    """
    model = read_sentencepiece_model(path)
    _check(model, path)
    texts = {i: piece.text for i, piece in enumerate(model.pieces)} | {i: token.content for i, token in added.items()}
    vocabulary = {text: i for i, text in texts.items()}
    repeated = [text for text, times in Counter(texts.values()).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: of its pieces and the added tokens, several are {repeated}; expected one id to each")
    absent = sorted({UNKNOWN, BEGIN, END} - vocabulary.keys())
    if absent:
        raise ValueError(f"{path}: none of its pieces is {absent}; expected InternLM2's special tokens")
    kept = [piece for i, piece in enumerate(model.pieces) if i not in added]
    bpe = models.BPE(
        vocab=vocabulary,
        merges=_merges([piece for piece in kept if piece.kind == _NORMAL]),
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )
    tokenizer = Tokenizer(bpe)  # pyright: ignore[reportCallIssue]
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # Symbols of the training's user are found whole, in text whose spaces are already replaced; added tokens before.
    tokenizer.add_tokens([AddedToken(p.text, normalized=True) for p in kept if p.kind == _USER_DEFINED])
    special = [AddedToken(text, normalized=False, special=True) for text in (UNKNOWN, BEGIN, END)]
    tokenizer.add_tokens([*special, *added.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def _check(model: SentencePieceModel, path: Path) -> None:
    expected = {
        "model_type": _BPE,
        "precompiled_charsmap": b"",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "escape_whitespaces": True,
    }
    other = {key: getattr(model, key) for key, value in expected.items() if getattr(model, key) != value}
    if other:
        other |= {"precompiled_charsmap": "…"} if "precompiled_charsmap" in other else {}
        raise ValueError(
            f"{path}: a SentencePiece model with {other} is not supported; expected {expected}. "
            "A tokenizer.json beside it would be used in its stead"
        )


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the piece of the highest score first."""
    texts = {piece.text for piece in pieces}
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        halves = ((piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text)))
        merges += [(left, right) for left, right in halves if left in texts and right in texts]
    return merges


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields: int for a varint, else bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError(f"wire type {wire_type}")
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        if at + size > len(message):
            raise ValueError("it ends too early")
        yield number, message[at : at + size]
        at += size

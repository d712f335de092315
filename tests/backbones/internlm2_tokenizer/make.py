"""Makes the files beside it: `pip install sentencepiece==0.2.3 && python make.py`.

A tiny tokenizer.model of InternLM2's kind (BPE, bytes for unknown characters, no dummy prefix, spaces kept), tokens
added since, and SentencePiece's own encoding of each stretch of text between those: what InternLM2's tokenizer, a slow
one of Transformers, puts together.
"""

import json
import random
import re
from pathlib import Path

import sentencepiece  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
TRAINED_ON = [
    "The cat sat on the mat and looked at the other cats there.",
    "What does the man do next in the video?",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
    "user assistant system describe these images in detail, then answer the question.",
    "for i in range(10):    print(i)        return    a a  aa aaa aaaa",
    "banana bananas ananas an ana nana",
]
# Symbols of the training's user are never split. The first two are later taken over by added tokens.
UNUSED = ["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"]
SYMBOLS = [*UNUSED, "\n", "\t", "▁▁▁▁"]
TAKEN_OVER = {"<|im_end|>": UNUSED[0], "<|im_start|>": UNUSED[1]}
NEW = ["<img>", "</img>", "<IMG_CONTEXT>"]
TEXTS = [
    "",
    " ",
    "The man sat.",
    " The man  sat   there.    ",
    "\n",
    "Who?\n\n\tAnn, é 😀 ﬁ Ａ\u0301\r\n",
    "[UNUSED_TOKEN_2] and [UNUSED_TOKEN",
    "<0x41> <unk> <s></s>",
    "▁▁▁▁▁ literal ▁",
    "<s><|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat next?<|im_end|><|im_start|>assistant\n",
]


def main() -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON * 3),
        model_prefix=str(HERE / "tokenizer"),
        model_type="bpe",
        vocab_size=430,
        character_coverage=0.985,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=SYMBOLS,
    )
    (HERE / "tokenizer.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(HERE / "tokenizer.model"))
    num_pieces = model.get_piece_size()
    added = {name: i for i, name in enumerate(("<unk>", "<s>", "</s>"))}
    added |= {name: model.piece_to_id(piece) for name, piece in TAKEN_OVER.items()}
    added |= {name: num_pieces + i for i, name in enumerate(NEW)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    _write("added_tokens.json", {name: added[name] for name in (*TAKEN_OVER, *NEW)})
    described = {str(i): {"content": name, **flags} for name, i in added.items()}
    code = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    _write("tokenizer_config.json", {"added_tokens_decoder": described, "auto_map": code})

    between = re.compile("(" + "|".join(map(re.escape, added)) + ")")

    def encode(text: str) -> list[int]:
        stretches = (stretch for stretch in between.split(text) if stretch)
        return [i for s in stretches for i in ([added[s]] if s in added else model.encode(s))]

    _write("encodings.json", {text: encode(text) for text in [*TEXTS, *_random_texts(model, list(added))]})


def _random_texts(model: sentencepiece.SentencePieceProcessor, added: list[str]) -> list[str]:
    random.seed(0)
    pieces = [model.id_to_piece(i).replace("▁", " ") for i in range(model.get_piece_size()) if not model.is_byte(i)]
    # Text that spells a piece taken over is text to us; SentencePiece would still make the added token of it.
    atoms = [p for p in pieces if p not in TAKEN_OVER.values()] + added + ["é", "😀", "  ", "▁", "<0x41>"]
    return ["".join(random.choices(atoms, k=random.randint(1, 10))) for _ in range(150)] + [
        "".join(random.choices("ana b\n▁", k=random.randint(1, 20))) for _ in range(150)
    ]


def _write(name: str, content: object) -> None:
    (HERE / name).write_text(json.dumps(content, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

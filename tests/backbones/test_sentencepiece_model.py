"""tokenizer.model without the sentencepiece package, against that package's own encodings of a tiny model."""

import json
import shutil
from pathlib import Path

import pytest

from linvt.backbones.internlm2 import internlm2_tokenizer
from linvt.backbones.sentencepiece_model import read_sentencepiece_model

FILES = Path(__file__).parent / "internlm2_tokenizer"
ENCODINGS: dict[str, list[int]] = json.loads((FILES / "encodings.json").read_text())
ADDED: dict[str, int] = json.loads((FILES / "added_tokens.json").read_text())
# Fields of NormalizerSpec in the file: (number << 3 | wire type), value.
DUMMY_PREFIX_OFF, EXTRA_WHITESPACES_KEPT = b"\x18\x00", b"\x20\x00"


@pytest.fixture(scope="module")
def tokenizer():
    return internlm2_tokenizer(FILES)


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_encodes_as_sentencepiece_does(tokenizer):
    assert {text: _ids(tokenizer, text) for text in ENCODINGS} == ENCODINGS
    assert len(ENCODINGS) > 250


def test_decodes_what_it_encoded(tokenizer):
    # A literal "▁" comes back as a space: SentencePiece itself cannot tell them apart.
    assert [t for t in ENCODINGS if tokenizer.decode(_ids(tokenizer, t)) != t.replace("▁", " ")] == []


def test_added_tokens_are_special_and_keep_their_ids(tokenizer):
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ADDED} == ADDED
    assert _ids(tokenizer, "".join(ADDED)) == list(ADDED.values())
    assert tokenizer.decode([*ADDED.values(), *_ids(tokenizer, "sat")], skip_special_tokens=True) == "sat"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)


def test_text_that_spells_a_piece_taken_over_makes_no_special_token(tokenizer):
    piece = read_sentencepiece_model(FILES / "tokenizer.model").pieces[ADDED["<|im_start|>"]].text
    assert ADDED["<|im_start|>"] not in _ids(tokenizer, piece)
    assert tokenizer.decode(_ids(tokenizer, piece)) == piece


def test_names_alone_are_enough(tmp_path, tokenizer):
    for file in ("tokenizer.model", "added_tokens.json"):
        shutil.copyfile(FILES / file, tmp_path / file)
    named = internlm2_tokenizer(tmp_path)
    assert {text: _ids(named, text) for text in ENCODINGS} == ENCODINGS


@pytest.mark.parametrize(
    ("field", "name"), [(DUMMY_PREFIX_OFF, "add_dummy_prefix"), (EXTRA_WHITESPACES_KEPT, "remove_extra_whitespaces")]
)
def test_a_model_that_treats_spaces_otherwise_is_refused(tmp_path, field, name):
    content = (FILES / "tokenizer.model").read_bytes()
    assert content.count(field) == 1
    (tmp_path / "tokenizer.model").write_bytes(content.replace(field, field[:1] + b"\x01"))
    with pytest.raises(ValueError, match=rf"with \{{'{name}': True\}} is not supported"):
        internlm2_tokenizer(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        internlm2_tokenizer(tmp_path)
    whole = (FILES / "tokenizer.model").read_bytes()
    for content in (b"version https://git-lfs.github.com/spec/v1\n", whole[:-3], whole[:1000]):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"is no model of SentencePiece \(.*download it again"):
            internlm2_tokenizer(tmp_path)


def test_an_added_token_that_repeats_a_piece_is_refused(tmp_path):
    shutil.copyfile(FILES / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"an": 430}))
    with pytest.raises(ValueError, match=r"several are \['an'\]"):
        internlm2_tokenizer(tmp_path)


def test_special_tokens_that_were_renamed_are_refused(tmp_path):
    shutil.copyfile(FILES / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<bos>": 1}))
    with pytest.raises(ValueError, match=r"none of its pieces is \['<s>'\]"):
        internlm2_tokenizer(tmp_path)

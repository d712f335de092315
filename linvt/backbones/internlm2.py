"""InternLM2 as Transformers' Llama: how its tensors are split and named, and its text tokenizer.

Shape legend: K key/value heads, G query heads to each of them, D channels of a head, C hidden size.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from linvt.backbones.checkpoint import Placed, Rule
from linvt.backbones.sentencepiece_model import tokenizer_from_sentencepiece

_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def internlm2_rules(prefix: str, *, num_heads: int, num_kv_heads: int) -> list[Rule]:
    """Fills a LlamaForCausalLM at `model` from names that begin with `prefix`, a regular expression."""

    def split_qkv(match: re.Match[str], wqkv: Tensor) -> Iterator[Placed]:
        # [K·(G+2)·D, C]: for each key/value head its query heads, then its key, then its value.
        grouped_KGDC = wqkv.unflatten(0, (num_kv_heads, num_heads // num_kv_heads + 2, -1))
        for name, rows in (("q", grouped_KGDC[:, :-2]), ("k", grouped_KGDC[:, -2:-1]), ("v", grouped_KGDC[:, -1:])):
            yield Placed(f"model.model.layers.{match[1]}.self_attn.{name}_proj.weight", rows.flatten(0, 2))

    layer = rf"{prefix}model\.layers\.(\d+)\."
    return [
        Rule("llm", rf"{prefix}model\.tok_embeddings\.weight", "model.model.embed_tokens.weight"),
        Rule("llm", rf"{prefix}model\.norm\.weight", "model.model.norm.weight"),
        Rule("llm", rf"{prefix}output\.weight", "model.lm_head.weight"),
        Rule("llm", rf"{layer}attention\.wqkv\.weight", split_qkv),
        *(
            Rule("llm", rf"{layer}{re.escape(published)}\.weight", rf"model.model.layers.\1.{ours}.weight")
            for published, ours in _LAYER.items()
        ),
    ]


def internlm2_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The text tokenizer of a directory with a tokenizer.model and, beside it, the tokens added since its training.

    Raises ValueError if the file is missing or works otherwise than InternLM2's.
    """
    path = directory / "tokenizer.model"
    if not path.exists():
        raise ValueError(f"{directory}: neither tokenizer.json nor tokenizer.model; expected a text tokenizer")
    return tokenizer_from_sentencepiece(path, _added_tokens(directory))


def _added_tokens(directory: Path) -> dict[int, AddedToken]:
    """By id: tokenizer_config.json tells all about them, added_tokens.json only their names."""
    added = {
        i: AddedToken(t, normalized=False, special=True) for t, i in _read(directory / "added_tokens.json").items()
    }
    described = _read(directory / "tokenizer_config.json").get("added_tokens_decoder", {})
    return added | {int(i): AddedToken(**token) for i, token in described.items()}


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}

"""Multi-head attention whose keys and values may come from elsewhere, and may be computed once for many queries.

Shape legend: B batch, Q queries, K keys, C hidden size, H heads, D = C / H.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """4C² weights with biases; scaled dot-product attention, so no [Q, K] tensor is kept."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def keys_values(self, keys_BKC: Tensor, values_BKC: Tensor) -> tuple[Tensor, Tensor]:
        split = "b k (h d) -> b h k d"
        return (
            rearrange(self.key(keys_BKC), split, h=self.num_heads),
            rearrange(self.value(values_BKC), split, h=self.num_heads),
        )

    def attend(self, queries_BQC: Tensor, keys_BHKD: Tensor, values_BHKD: Tensor, mask_BK: Tensor | None) -> Tensor:
        """[B, Q, C]. `mask_BK`: true = valid; a row without a valid key yields zeros before the output bias."""
        queries_BHQD = rearrange(self.query(queries_BQC), "b q (h d) -> b h q d", h=self.num_heads)
        mask = None
        if mask_BK is not None:
            # A softmax over no key at all is NaN; such a row attends to everything and is zeroed below.
            has_key_B = mask_BK.any(-1)
            mask = (mask_BK | ~has_key_B[:, None])[:, None, None, :]
        mixed_BHQD = F.scaled_dot_product_attention(queries_BHQD, keys_BHKD, values_BHKD, attn_mask=mask)
        mixed_BQC = rearrange(mixed_BHQD, "b h q d -> b q (h d)")
        if mask_BK is not None:
            mixed_BQC = mixed_BQC * has_key_B[:, None, None].to(mixed_BQC.dtype)
        return self.out(mixed_BQC)

    def forward(self, queries_BQC: Tensor, keys_BKC: Tensor, mask_BK: Tensor | None = None) -> Tensor:
        return self.attend(queries_BQC, *self.keys_values(keys_BKC, keys_BKC), mask_BK)

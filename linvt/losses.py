"""The contrastive half of stage 1 (paper sec. 3.3): a video and its caption should find each other in the batch.

Shape legend: B videos of this rank, G videos of all ranks, L caption tokens, Q video tokens, C hidden size, E = 256.
"""

import math

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_SIZE = 256
# The clamp that VideoChat2 trains with: a temperature that runs away makes the loss a step function.
_TEMPERATURE_RANGE = (0.001, 0.5)


class ContrastiveHead(nn.Module):
    """Projects both sides to one space and compares them. Needed in training only; no artifact holds it."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.video = nn.Linear(hidden_size, EMBEDDING_SIZE)
        self.text = nn.Linear(hidden_size, EMBEDDING_SIZE)
        # One element, not a scalar: DeepSpeed cannot broadcast parameters without dimensions.
        self.log_temperature = nn.Parameter(torch.tensor([math.log(0.07)]))

    def forward(self, video_BC: Tensor, caption_BC: Tensor, ids_B: Tensor) -> Tensor:
        """Symmetric cross-entropy, the mean over this rank's rows against all ranks' rows.

        `ids_B` (int64) tells videos apart: other rows of the same video are neither positives nor negatives. The mean
        over ranks of this loss, and of its gradient, is that of one process with all rows.
        """
        video_BE = F.normalize(self.video(video_BC).float(), dim=-1)
        caption_BE = F.normalize(self.text(caption_BC).float(), dim=-1)
        videos_GE, captions_GE, ids_G, offset = _gather(video_BE, caption_BE, ids_B)
        temperature = self.log_temperature.exp().clamp(*_TEMPERATURE_RANGE)
        target_B = torch.arange(len(ids_B), device=ids_B.device) + offset
        own_BG = F.one_hot(target_B, len(ids_G)).bool()
        duplicate_BG = (ids_B[:, None] == ids_G[None, :]) & ~own_BG
        loss = video_BE.new_zeros(())
        for rows, columns in ((video_BE, captions_GE), (caption_BE, videos_GE)):
            logits_BG = (rows @ columns.T / temperature).masked_fill(duplicate_BG, float("-inf"))
            loss = loss + 0.5 * F.cross_entropy(logits_BG, target_B)
        return loss


def _gather(video_BE: Tensor, caption_BE: Tensor, ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """All ranks' rows with gradients, in one collective; every rank must bring as many rows."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return video_BE, caption_BE, ids_B, 0
    # Ids travel as floats that hold them exactly, 16 bits each.
    shifts_4 = torch.arange(0, 64, 16, device=ids_B.device)
    ids_B4 = ((ids_B[:, None] >> shifts_4) & 0xFFFF).to(video_BE.dtype)
    gathered_G = torch.cat(dist_nn.all_gather(torch.cat([video_BE, caption_BE, ids_B4], dim=-1)))
    videos_GE, captions_GE, ids_G4 = gathered_G.split([EMBEDDING_SIZE, EMBEDDING_SIZE, 4], dim=-1)
    ids_G = (ids_G4.detach().long() << shifts_4).sum(-1)
    return videos_GE, captions_GE, ids_G, dist.get_rank() * len(ids_B)

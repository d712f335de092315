"""Assembly as a Ray task. Imports no torch: its processes start within the time of one small shard."""

from linvt.extraction.assembly import assemble_shard
from linvt.extraction.plan import PlannedInput
from linvt.shards.commit import CommitRecord
from linvt.shards.storage import open_storage


def assemble(uri: str, planned: tuple[PlannedInput, ...], plan_hash: str, feature_id: str) -> CommitRecord:
    """See `assemble_shard`; `uri` is the extraction's folder."""
    return assemble_shard(open_storage(uri), planned, plan_hash, feature_id)

"""All benchmarks of the paper, by the name that `--benchmark` takes."""

from linvt.evaluation.benchmarks.documents import DOCVQA, TEXTVQA
from linvt.evaluation.benchmarks.image_choices import AI2D, MMMU, SEED_IMAGE
from linvt.evaluation.benchmarks.mm_vet import MM_VET_BENCHMARK
from linvt.evaluation.benchmarks.mmbench_video import MMBENCH_VIDEO_BENCHMARK
from linvt.evaluation.benchmarks.open_qa import ACTIVITYNET_QA, MSRVTT_QA, MSVD_QA, TGIF_QA
from linvt.evaluation.benchmarks.short_video_choices import EGOSCHEMA, MVBENCH, NEXTQA
from linvt.evaluation.benchmarks.tempcompass import TEMPCOMPASS
from linvt.evaluation.benchmarks.video_choices import LONG_VIDEO_BENCH, MLVU, VIDEO_VISTA
from linvt.evaluation.benchmarks.video_mme import VIDEO_MME, VIDEO_MME_SUBTITLES
from linvt.evaluation.benchmarks.yes_no import HALLUSION, MME, POPE
from linvt.evaluation.entry import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        MSVD_QA,
        MSRVTT_QA,
        ACTIVITYNET_QA,
        TGIF_QA,
        MVBENCH,
        MMBENCH_VIDEO_BENCHMARK,
        VIDEO_MME,
        VIDEO_MME_SUBTITLES,
        NEXTQA,
        EGOSCHEMA,
        VIDEO_VISTA,
        TEMPCOMPASS,
        MLVU,
        LONG_VIDEO_BENCH,
        MMMU,
        DOCVQA,
        HALLUSION,
        AI2D,
        MM_VET_BENCHMARK,
        TEXTVQA,
        POPE,
        SEED_IMAGE,
        MME,
    )
}

from linvt.extraction.tally import TALLIED_COLUMNS, Tally


def _columns(*rows: dict) -> dict[str, list]:
    return {name: [row.get(name) for row in rows] for name in TALLIED_COLUMNS}


def test_what_a_run_did_is_added_up():
    tally = Tally(num_decoders=2, num_encoders=1)
    good = {"slot": 0, "status": "committed", "duration_s": 1800.0, "num_frames": 45000}
    times = {"fetch_s": 1.0, "decode_s": 20.0, "shots_detection_s": 9.0, "encode_s": 10.0}
    bad = {"slot": 2, "status": "quarantined", "stage": "open", "error_class": "EmptyFile"}
    tally.add(_columns(good | times, bad))
    tally.add(_columns(bad, bad | {"stage": "decode", "error_class": "NoFrames"}))
    assert tally.facts(40.0) == {
        "quarantined": 3,
        "video_hours": 0.5,
        "frames_per_s": 1125.0,
        # Two decoders had 80 s between them and worked 30; the encoder worked 10 of 40.
        "decoders_starved": 0.625,
        "encoders_starved": 0.75,
    }
    summary = tally.summary(40.0, cpus=4, gpus=0)
    assert summary["video_hours_per_day_and_core"] == summary["video_hours_per_day"] / 4 == 270.0
    assert "video_hours_per_day_and_gpu" in tally.summary(40.0, cpus=4, gpus=1)
    assert summary["quarantined_by_reason"] == {"open: EmptyFile": 2, "decode: NoFrames": 1}
    assert summary["stage_seconds"] == {"fetch": 1.0, "decode": 20.0, "shots": 9.0, "encode": 10.0}


def test_a_run_without_anything_done_has_a_summary_too():
    summary = Tally(num_decoders=1, num_encoders=1).summary(0.0, cpus=0, gpus=0)
    assert (summary["inputs_this_run"], summary["quarantined"], summary["video_hours_per_day"]) == (0, 0, 0)

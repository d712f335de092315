"""Estimate: what extraction and training will take and cost, with the cache and without."""

from typing import Any

from linvt.command import run
from linvt.estimation.config import EstimateConfig


def main(config: EstimateConfig) -> dict[str, Any]:
    from linvt.estimation.estimating import run_estimate

    return run_estimate(config)


if __name__ == "__main__":
    run(EstimateConfig, main, description="Estimate storage, hours and cost before renting anything.")

"""The endpoint on Ray Serve: started, waited for, taken down."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import ray
from ray import serve

from linvt.extraction.identity import FeatureSpec
from linvt.serving.config import ServeConfig
from linvt.serving.feature_spec import trained_feature_spec
from pipelines._gateway import gateway_deployment
from pipelines._model_replica import model_deployment

logger = logging.getLogger(__name__)

_APP_NAME = "linvt"


def serve_until_stopped(config: ServeConfig) -> dict[str, Any]:
    """Serves until SIGINT or SIGTERM, then takes everything down that it started. Logs "ready" with the URL.

    Raises ValueError for a model, key or port that cannot be used, RuntimeError if the endpoint does not come up.
    """
    started = time.monotonic()
    stopped_by: list[str] = []
    stop = threading.Event()

    def on_signal(number: int, _: Any) -> None:
        stopped_by.append(signal.Signals(number).name)
        stop.set()

    with running(config) as url:
        handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            logger.info("ready: %s (model %r)", url, config.served_model_name)
            while not stop.wait(1.0):
                status = serve.status().applications[_APP_NAME]
                if status.status in ("DEPLOY_FAILED", "NOT_STARTED"):
                    raise RuntimeError(f"the endpoint went down: {status.status} {status.message}")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return {
        "url": url,
        "model": str(config.model),
        "stopped_by": stopped_by[0],
        "seconds": round(time.monotonic() - started, 3),
    }


@contextlib.contextmanager
def running(config: ServeConfig) -> Any:
    """The endpoint, up and answering, at the URL that this gives; on exit it is taken down."""
    # What is wrong with the configuration is told before anything starts.
    _api_key(config)
    _feature_spec(config)
    with contextlib.ExitStack() as session:
        if not ray.is_initialized():
            # Workers' output would mix with the outcome on stdout; it is in Ray's own logs.
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
            session.callback(ray.shutdown)
        _check_port(config)
        session.callback(serve.shutdown)
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(application(config), name=_APP_NAME, route_prefix="/")
        url = f"http://{_reachable(config.host)}:{config.port}"
        # A Serve that ran already keeps its own address, and would leave ours dead.
        try:
            httpx.get(f"{url}/health", timeout=30).raise_for_status()
        except httpx.HTTPError as error:
            raise RuntimeError(f"{url} does not answer; does Ray Serve run on this cluster already?") from error
        yield f"{url}/v1"


def application(config: ServeConfig) -> serve.Application:
    """What Ray Serve runs. Raises ValueError for a model or a key that cannot be used."""
    api_key = _api_key(config)
    spec, encode_batch_size = _feature_spec(config)
    gpus = config.num_gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    absolute = replace(
        config,
        model=config.model.resolve(),
        detector_weights=config.detector_weights and config.detector_weights.resolve(),
        allowed_media_dir=tuple(path.resolve() for path in config.allowed_media_dir),
    )
    fewest, most = config.replica_range
    if fewest == most:
        size: dict[str, Any] = {"num_replicas": fewest}
    else:
        scaling = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": config.max_batch}
        size = {"autoscaling_config": scaling | {"upscale_delay_s": config.scale_up_delay_s}}
    model = model_deployment.options(
        # Beside the rows of a batch, as many requests whose media are being encoded.
        max_ongoing_requests=2 * config.max_batch,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": gpus},
        **size,
    ).bind(absolute, spec, encode_batch_size)
    return gateway_deployment.options(
        # It refuses by itself, with an OpenAI error body; Ray only guards against a flood.
        max_ongoing_requests=4 * config.max_requests,
        max_queued_requests=16 * config.max_requests,
        # It mostly waits.
        ray_actor_options={"num_cpus": 0},
    ).bind(absolute, spec, api_key, model)


def _feature_spec(config: ServeConfig) -> tuple[FeatureSpec, int]:
    spec, encode_batch_size = trained_feature_spec(
        config.model,
        detector=config.detector,
        detector_weights=config.detector_weights,
        num_frames=config.num_frames,
    )
    if spec.num_frames > config.max_frames:
        raise ValueError(
            f"the model was trained on {spec.num_frames} frames a video; --max-frames is {config.max_frames}"
        )
    return spec, encode_batch_size


def _api_key(config: ServeConfig) -> str | None:
    if config.api_key_env is None:
        return None
    if not os.environ.get(config.api_key_env):
        raise ValueError(f"--api-key-env {config.api_key_env}: this environment variable is not set")
    return os.environ[config.api_key_env]


def _check_port(config: ServeConfig) -> None:
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror}; choose another --port"
            ) from error


def _reachable(host: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host

import pytest

from tests.tiny_models import save_tiny_llava


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    return str(save_tiny_llava(tmp_path_factory.mktemp("backbone")))


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """Two CPUs, and nothing shared with other clusters on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 1024**2)
    yield
    ray.shutdown()

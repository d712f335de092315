import pytest
import torch

from tests.training.inputs import Inputs, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

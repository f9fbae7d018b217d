import pytest
import torch

from mrse.model.retriever import Retriever
from tests import tiny_shop


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny shop's files."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


@pytest.fixture(scope="session")
def fresh(tiny):
    """An untrained retriever over them, nothing at zero that could hide a difference."""
    torch.manual_seed(1)
    retriever = Retriever.create(tiny_shop.config().model, tiny / "features")
    for tensor in [*retriever.model.parameters(), *retriever.model.buffers()]:
        if tensor.abs().sum() == 0:
            torch.nn.init.normal_(tensor, std=0.1)
    retriever.model.eval()
    return retriever

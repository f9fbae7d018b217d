"""Fixtures that the tests of index, serving and command line share."""

import os
from contextlib import ExitStack

import pytest

from mrse.config import ServicesConfig
from mrse.index.client import opened
from tests import fake_shop


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory):
    """One store for all: making one takes seconds. Versions only ever grow, so tests do not meet."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def services(tmp_path, mlflow_uri):
    """Milvus Lite. `MRSE_TEST_MILVUS_URI=http://host:19530` runs the same tests on a server, emptied first."""
    server = os.environ.get("MRSE_TEST_MILVUS_URI")
    if server:
        _empty(server)
    return ServicesConfig(
        milvus_uri=server or str(tmp_path / "milvus.db"),
        mlflow_uri=mlflow_uri,
        state_dir=str(tmp_path / "state"),
        cache_dir=str(tmp_path / "cache"),
    )


def _empty(server):
    with opened(ServicesConfig(milvus_uri=server)) as store:
        store.point(None)
        for name in [*store.collections(), "stranger"]:
            store._client.drop_collection(name)


@pytest.fixture
def workspace(tmp_path):
    """Tables of six items, no model yet."""
    fake_shop.open_shop(tmp_path)
    return tmp_path


@pytest.fixture
def shop(workspace, services):
    """The workspace with a promoted challenger, and the fake model in place of the real one."""
    with ExitStack() as stack:
        for patch in fake_shop.patches():
            stack.enter_context(patch)
        fake_shop.train_challenger(workspace, services, seed=1)
        yield workspace

"""An object store for tests: moto's S3 on one address of this machine."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

BUCKET = "shop"


@contextmanager
def object_store(address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Serve the bucket `shop`, empty; yields the variables by which clients of S3 find it and its keys."""
    from moto.server import ThreadedMotoServer  # here: its import takes a second

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address=address, port=0)
    server.start()
    try:
        found = {
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        _empty(found["AWS_ENDPOINT_URL"])
        yield found
    finally:
        server.stop()


def _empty(url: str) -> None:
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
    system = fsspec.filesystem("s3", endpoint_url=url, key="key", secret="secret", skip_instance_cache=True)
    system.mkdir(BUCKET)


@pytest.fixture(scope="session")
def store_of_buckets() -> Iterator[dict[str, str]]:
    """What `object_store` yields, once for all tests: it takes half a second to start and to stop."""
    with object_store() as environment:
        yield environment


@pytest.fixture
def bucket(store_of_buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket that this process and its children find."""
    _empty(store_of_buckets["AWS_ENDPOINT_URL"])
    for name, value in store_of_buckets.items():
        monkeypatch.setenv(name, value)
    system = fsspec.get_filesystem_class("s3")
    system.clear_instance_cache()  # what it was told by an earlier test's environment
    yield f"s3://{BUCKET}"
    system.clear_instance_cache()

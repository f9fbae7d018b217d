"""An object store for tests: moto's S3 on one address of this machine."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "shop"


@contextmanager
def object_store(address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Serve the bucket `shop`, empty; yields the variables by which clients of S3 find it and its keys."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address=address, port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()  # what an earlier one in this process has left
    try:
        found = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = {"endpoint_url": url, "key": "key", "secret": "secret"}
        fsspec.filesystem("s3", **client, skip_instance_cache=True).mkdir(BUCKET)
        yield found
    finally:
        server.stop()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket that this process and its children find."""
    with object_store() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        system = fsspec.get_filesystem_class("s3")
        system.clear_instance_cache()  # what it knew of an earlier server
        yield f"s3://{BUCKET}"
        system.clear_instance_cache()

"""Fixtures for tests of any kind."""

from tests.object_store import bucket, store_of_buckets

__all__ = ["bucket", "store_of_buckets"]

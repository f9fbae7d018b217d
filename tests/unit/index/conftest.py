"""A small shop, the fake model, one MLflow store per test session, one Milvus folder per test."""

from tests.index_fixtures import mlflow_uri, services, shop, workspace

__all__ = ["mlflow_uri", "services", "shop", "workspace"]

"""What integration tests share: the one running service, and the Ray cluster it brought up."""

from __future__ import annotations

import pytest

from tests.conftest import Service


@pytest.fixture(scope="session")
def ray_cluster(service: Service) -> Service:
    """The Ray cluster of the running service, which this process drives; training shares it as it does in life."""
    return service

"""What several test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from beam import Beam


@pytest.fixture(scope="session")
def beam() -> Iterator[Beam]:
    with Beam() as running:
        yield running

"""What tests of commands share."""

from __future__ import annotations

import pytest

from tests.fixtures.shell import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of `make_world`."""
    return make_world(tmp_path_factory.mktemp("world"))

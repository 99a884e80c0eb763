"""What several test files share."""

import pytest
from tiny import World, build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A codec and three priors, trained once through train.py; nothing may be changed in it, only added."""
    folder = tmp_path_factory.mktemp("world")
    for name, done in build_world(folder):
        assert done.code == 0, f"{name}: {done.err}"
    return World(folder)

"""What the tests of the projection share."""

from __future__ import annotations

import pytest

from conceptvec.extraction import fast


@pytest.fixture(scope="session")
def kernels() -> None:
    """Skip where the compiled kernels cannot be built."""
    if fast.library() is None:
        pytest.skip("no g++ on Linux: no compiled kernels")


@pytest.fixture(params=["pytorch", "compiled"])
def is_compiled(request: pytest.FixtureRequest) -> bool:
    """Both ways of the projection."""
    if request.param == "compiled":
        request.getfixturevalue("kernels")
    return request.param == "compiled"

"""Fixtures for all tests."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")  # new examples in every run; a failure prints what repeats it

# Where a shell runs the tests in the background, they and the commands they start would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Keep what was imported from the garbage collector: to look through all of it takes it a second each time."""
    gc.collect()
    gc.freeze()


SHARED_DATASETS = Path(__file__).parents[2] / "shared" / "datasets"


@pytest.fixture(scope="session", autouse=True)
def image_cache(pytestconfig: pytest.Config) -> Iterator[Path]:
    """Keep decoded images out of the user's cache, in pytest's own, where a second run of the tests finds them."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLATLAB_CACHE", str(folder))
        patch.delenv("FLATLAB_DATA", raising=False)
        yield folder


@pytest.fixture(scope="session")
def shared_datasets() -> Path:
    """The folder of real data sets beside the repository, without which the test is skipped."""
    if not SHARED_DATASETS.is_dir():
        pytest.skip(f"no data sets in {SHARED_DATASETS}")
    return SHARED_DATASETS

"""What all tests share.

Quiet TensorFlow, one seed, and the skip for tests that need the real data.
"""

import fnmatch
import gc
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import pytest

SHARED = pathlib.Path(
    os.environ.get("TFQUANT_SHARED", pathlib.Path(__file__).parents[1].parent / "shared")
).resolve()


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "needs_shared: needs the real data and model beside the repository"
    )
    config.addinivalue_line(
        "markers", "long: more of a kind that a few others stand for; run by `make test-long`"
    )
    config.addinivalue_line(
        "markers",
        "representatives(*patterns): parameter sets (patterns of their IDs) that `make test` runs; "
        "the others are `long`",
    )


def mark_represented(items):
    """Mark as `long` the parameter sets that no pattern of `representatives` matches."""
    unmatched = {}
    for item in items:
        for marker in item.iter_markers("representatives"):
            patterns = unmatched.setdefault(item.nodeid.partition("[")[0], set(marker.args))
            matching = [one for one in marker.args if fnmatch.fnmatchcase(item.callspec.id, one)]
            patterns.difference_update(matching)
            if not matching:
                item.add_marker(pytest.mark.long)
    return unmatched


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Long tests and those on real data run only when asked for by name (`-m`), the latter when the
    data is there.
    """
    unmatched = mark_represented(items)
    # With a parameter set named on the command line, the others are not there to be matched.
    stale = {test: sorted(patterns) for test, patterns in unmatched.items() if patterns}
    if stale and not any("[" in argument for argument in config.args):
        raise pytest.UsageError(f"representatives match no parameter set: {stale}")
    asked = "needs_shared" in (config.option.markexpr or "")
    for item in items:
        if item.get_closest_marker("long") is not None and "long" not in (
            config.option.markexpr or ""
        ):
            item.add_marker(
                pytest.mark.skip(reason="one of many alike or long: run `make test-long`")
            )
        if item.get_closest_marker("needs_shared") is None:
            continue
        if not SHARED.is_dir():
            item.add_marker(
                pytest.mark.skip(reason=f"real data not found in {SHARED} (set TFQUANT_SHARED)")
            )
        elif not asked:
            item.add_marker(pytest.mark.skip(reason="needs the real data: run `make test-shared`"))


def pytest_collection_finish(session):
    """Take what imports made out of garbage collection: a tenth of the time of tests that trace."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    return SHARED


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(1234)

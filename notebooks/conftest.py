"""How nbval checks the committed notebooks: as a reader's "Run all" on the embedded data."""

import os

import pytest

for _name in ("CHESTXRAY_DATA", "CHESTXRAY_STEP_KEY"):
    os.environ.pop(_name, None)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def pytest_collection_modifyitems(items):
    """Notebook 04 trains five networks, 05 tests maps, and 07 makes and times four exports: slow tests."""
    for item in items:
        if item.path.name.startswith(("04_", "05_", "07_")):
            item.add_marker(pytest.mark.slow)


def pytest_collectstart(collector):
    """Leave out what a kernel under pytest shows differently: native messages and HTML tables."""
    if collector.fspath and collector.fspath.ext == ".ipynb":
        collector.skip_compare += ("stderr", "text/html")

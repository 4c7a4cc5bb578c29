"""How nbval checks the committed notebooks: as a reader's "Run all" on the embedded data."""

import os

for _name in ("CHESTXRAY_DATA", "CHESTXRAY_STEP_KEY"):
    os.environ.pop(_name, None)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def pytest_collectstart(collector):
    """Leave out what a kernel under pytest shows differently: native messages and HTML tables."""
    if collector.fspath and collector.fspath.ext == ".ipynb":
        collector.skip_compare += ("stderr", "text/html")

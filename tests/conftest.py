"""What all tests share: a cache of their own, no data folder of the machine's, small folders of images."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# Before anything of ours, TensorFlow or Matplotlib is imported.
for _name in ("CHESTXRAY_DATA", "CHESTXRAY_WEIGHTS"):  # kept under another name: workers inherit only that
    if _name in os.environ:
        os.environ[f"TESTS_{_name}"] = os.environ.pop(_name)
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it: phantoms are made once
    os.environ["CHESTXRAY_CACHE"] = tempfile.mkdtemp(prefix="chestxray-tests-")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the workers share the cores, on which waiting threads would spin

import matplotlib

matplotlib.use("Agg")  # not by MPLBACKEND: the kernels of the notebooks would inherit it

import cv2
import numpy as np
import pandas as pd
import pytest
import tiny

from chestxray.data.catalog import group_by_names
from chestxray.phantoms import write_phantoms


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["CHESTXRAY_CACHE"], ignore_errors=True)


def _given(name: str, what: str) -> Path:
    if not os.environ.get(f"TESTS_{name}"):
        pytest.skip(f"{name} is not set: {what}")
    return Path(os.environ[f"TESTS_{name}"])


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the 5,856 real images."""
    return _given("CHESTXRAY_DATA", "needs the real images")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The file or folder of ImageNet weights."""
    return _given("CHESTXRAY_WEIGHTS", "needs the ImageNet weights")


@pytest.fixture(scope="session")
def _kaggle_names() -> pd.DataFrame:
    listed = pd.read_csv(
        Path(__file__).parent / "fixtures" / "kaggle_files.csv", dtype=str, keep_default_na=False
    )
    folders = listed["path"].str.split("/", expand=True)
    return group_by_names(
        pd.DataFrame(
            {
                "path": listed["path"],
                "label": (folders[1] == "PNEUMONIA").astype(int),
                "official_split": folders[0],
                "width": 224,
                "height": 224,
                "mode": "L",
                "bytes": 1,
                "sha256": listed["path"].where(listed["copies"] == "", "copies " + listed["copies"]),
            }
        )
    )


@pytest.fixture
def kaggle_names(_kaggle_names) -> pd.DataFrame:
    """Catalog of all 5,856 files of the Kaggle data, from their names and known copies, without images."""
    return _kaggle_names.copy()


@pytest.fixture(scope="session")
def make_images():
    """Function that writes small images, each of another content, and returns their folder."""

    def write(folder: Path, paths: list[str], height: int = 20, width: int = 24) -> Path:
        for number, path in enumerate(paths):
            pixels = np.random.default_rng(number).integers(0, 256, (height, width), dtype=np.uint8)
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode(target.suffix, pixels)[1].tobytes())
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of 60 drawn pictures of 48 px, in the Kaggle layout."""
    return tiny.draw(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def data(tiny_folder):
    """The drawn pictures, split and decoded."""
    return tiny.load(tiny_folder)


@pytest.fixture
def plain_folder():
    """Function that writes phantoms as somebody's own folder: healthy, sick, names without patients."""

    def write(folder: Path, images: int) -> Path:
        write_phantoms(folder / "made", images, 64, 0)
        for name, kind in (("healthy", "NORMAL"), ("sick", "PNEUMONIA")):
            target = folder / "mine" / name
            target.mkdir(parents=True)
            made = sorted((folder / "made" / "chest_xray").rglob(f"{kind}/*.jpeg"))
            for number, path in enumerate(made):
                shutil.copy(path, target / f"{number:03d}.jpeg")
        return folder / "mine"

    return write

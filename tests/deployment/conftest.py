import pytest
import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return tiny.draw(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def data(tiny_folder):
    return tiny.load(tiny_folder)

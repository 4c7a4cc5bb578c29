"""On the real images and ImageNet weights, where CHESTXRAY_DATA and CHESTXRAY_WEIGHTS name them."""

import keras
import numpy as np
import pytest

import chestxray as cx
from chestxray.data.splits import split_hash

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(real_data):
    return cx.load_data(real_data, "image", 0, cx.ImageSettings(224))


def test_the_split_by_image_is_the_published_one(data, kaggle_names):
    counts = data.table.groupby(["split", "label"]).size().to_dict()
    assert counts == {
        ("train", 0): 1108,
        ("train", 1): 2991,
        ("val", 0): 237,
        ("val", 1): 641,
        ("test", 0): 238,
        ("test", 1): 641,
    }
    assert data.split_hash == split_hash(cx.make_split(kaggle_names, "image", 0))


def test_no_image_of_the_folder_is_lost(data):
    assert len(data.table) == 5856 and data.store.failed == {}
    assert (data.images("val").reshape(878, -1).std(axis=1) > 5).all()


def test_pretrained_vgg16_sees_real_images_as_that_of_keras_does(data, real_weights):
    rows = data.subset("val").groupby("label").sample(4, random_state=0)
    grey = data.store.images(rows).astype(np.float32)
    file = real_weights if real_weights.is_file() else real_weights / "vgg16_notop.weights.h5"
    plain = keras.applications.VGG16(
        include_top=False, weights=str(file), input_shape=(224, 224, 3), pooling="avg"
    )
    expected = plain(keras.applications.vgg16.preprocess_input(np.repeat(grey, 3, axis=-1))).numpy()
    model, recorded = cx.build_transfer_model("VGG16", weights=str(real_weights))
    assert recorded == file.name
    pooled = keras.Model(model.input, model.get_layer("pool").output)
    np.testing.assert_allclose(pooled(grey).numpy(), expected, rtol=1e-3, atol=1e-3 * expected.std())
    assert np.corrcoef(expected)[np.triu_indices(8, 1)].max() < 0.999  # the images differ

import keras
import numpy as np
import pytest
import tiny

import chestxray as cx


@pytest.fixture(scope="session")
def bundle(data, tmp_path_factory):
    """A network that nobody trained, put on record: folder of the bundle, folder of the run."""
    run = tmp_path_factory.mktemp("run")
    model = tiny.network("mixed_bfloat16")
    rng = np.random.default_rng(3)
    model.get_layer("conv").kernel.assign(rng.normal(0, 0.5, (3, 3, 1, 8)))
    model.get_layer("logit").kernel.assign(rng.normal(0, 3, (16, 1)))
    cx.record_model(model, data, "tiny", run, parameters={}, weights="random", training={"epochs": {}})
    return run / "saved_models" / "tiny-patient-s0-t0", run


@pytest.fixture(scope="session")
def compact(data, tmp_path_factory):
    """A network that ends as the compact CNN does and that nobody trained, on record."""
    run, layers, rng = tmp_path_factory.mktemp("compact"), keras.layers, np.random.default_rng(4)
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(64, 5, 4, "same", use_bias=False, name="conv")(layers.Rescaling(1 / 64)(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D(name="pool")(x))
    model = keras.Model(inputs, layers.Dense(1, name="logit")(x))
    model.get_layer("conv").kernel.assign(rng.normal(0, 0.5, (5, 5, 1, 64)))
    model.get_layer("logit").set_weights([rng.normal(0, 0.5, (64, 1)), np.array([0.3])])
    cx.record_model(model, data, "compact", run, parameters={}, weights="random", training={"epochs": {}})
    return run / "saved_models" / "compact-patient-s0-t0"


@pytest.fixture(scope="session")
def few_images_are_enough():
    """Let the gate of an export be content with the tiny data set."""
    from chestxray.deployment import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "LEAST_IMAGES", 5)
        yield


@pytest.fixture(scope="session")
def litert(compact, data, tmp_path_factory, few_images_are_enough):
    """Folder of the same model as LiteRT file."""
    folder = tmp_path_factory.mktemp("litert") / "model"
    cx.export_model(compact, folder, "litert", data)
    return folder

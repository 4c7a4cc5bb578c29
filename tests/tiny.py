"""A data set of 60 drawn pictures and a small network: enough to train, save and predict in seconds."""

import io

import cv2
import keras
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from chestxray import ImageSettings, TrainSettings, XrayData, load_data

SIZE = 32
STILL = TrainSettings(epochs=1, learning_rate=1e-30, class_weights=False)  # steps too small for float32


def draw(folder):
    """Write 20 normal, 20 bacterial and 20 viral PNGs of 48 px, two a patient, in Kaggle naming."""
    rng = np.random.default_rng(5)
    for number in range(60):
        patient, film = number // 2, number % 2 + 1
        picture = rng.normal(100, 25, (48, 48))
        if number < 20:
            path = folder / "NORMAL" / f"IM-{patient:04d}-{film:04d}.png"
        else:
            kind = "bacteria" if number < 40 else "virus"
            path = folder / "PNEUMONIA" / f"person{patient}_{kind}_{number}.png"
            x, y = rng.integers(8, 30, 2)
            picture[y : y + 12, x : x + 12] += 60
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))
    return folder


def load(folder, size=SIZE) -> XrayData:
    return load_data(folder, "patient", 0, ImageSettings(size))


def network(precision="float32", seed=0) -> keras.Model:
    """Everything that has a state: convolution, batch normalisation, two dropouts, dense layers."""
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    inputs = keras.Input((SIZE, SIZE, 1), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(inputs)
    x = layers.Conv2D(8, 3, 2, "same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(momentum=0.9, name="bn")(x)
    x = layers.ReLU()(x)
    x = layers.Dropout(0.2, name="dropout0")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(16, activation="relu", name="dense1")(x)
    x = layers.Dropout(0.4, name="dropout1")(x)
    x = layers.Dense(1, dtype="float32", name="logit")(x)
    keras.config.set_dtype_policy(former)
    return keras.Model(inputs, x)


def state(model) -> list[np.ndarray]:
    """Weights, moving statistics and dropout seeds."""
    return [variable.numpy() for variable in model.variables]


def same(first, second) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def by_layer(model) -> dict[str, list[np.ndarray]]:
    return {layer.name: [value.copy() for value in layer.get_weights()] for layer in model.layers}


def changed(before, after) -> set[str]:
    """Names of the layers whose weights differ, from two answers of :func:`by_layer`."""
    return {name for name in before if not same(before[name], after[name])}


def radiograph(pixels, bits=12, **tags):
    """A computed radiograph, encoded."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.PatientName, dataset.PatientID = "CR", "Doe^Jane", "4711-secret"
    dataset.Rows, dataset.Columns = np.shape(pixels)[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.asarray(pixels, "<u2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()

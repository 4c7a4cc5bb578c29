"""Page of a saved classifier that works in the browser: static files, and a server for a demo."""

import base64
import functools
import hashlib
import http.server
import json
import mimetypes
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from chestxray import __version__
from chestxray.data import dicom, lungs
from chestxray.data.images import ImageSettings
from chestxray.deployment import outliers
from chestxray.deployment.card import read_card, render
from chestxray.deployment.classifier import Classifier, load_classifier
from chestxray.files import cached_folder, project_path
from chestxray.phantoms.radiograph import render_phantom

if TYPE_CHECKING:
    import keras

    from chestxray.data.dataset import XrayData

RUNTIME = "onnxruntime-web@1.30.0"  # npm; its MIT licence is in LICENSES.txt
_RUNTIME_URL = f"https://cdn.jsdelivr.net/npm/{RUNTIME}/dist/"  # the same files
_LOADER, _MACHINE = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_RUNTIME_FILES = {
    _LOADER: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    _MACHINE: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
_TEMPLATES = Path(__file__).with_name("templates") / "web"
_SAMPLES = ("normal", "virus", "bacteria", "normal", "bacteria")  # synthetic images; the last one is turned


def page_network(classifier: Classifier) -> "keras.Model":
    """Return the network of :func:`chestxray.deployment.export.deployable` with what a page needs besides.

    Its output ``measures``, (N, 9), has the log-odds, brightness, contrast and sharpness, and the correlation
    with the mean training image: of the image itself, and after each of ``outliers.TURNS``.
    """
    import keras
    from keras import ops

    from chestxray.deployment.export import deployable

    network, size, side = deployable(classifier), classifier.image_settings.size, outliers.SIDE
    pixels, logits = network.inputs[0][..., 0], network.output["logit"]
    if logits.shape[-1] > 1:
        logits = ops.logsumexp(logits[:, 1:], axis=-1, keepdims=True) - logits[:, :1]
    padded = ops.pad(pixels, [[0, 0], [1, 1], [1, 1]], mode="reflect")
    neighbours = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    areas = cv2.resize(np.eye(size, dtype=np.float32), (size, side), interpolation=cv2.INTER_AREA)
    small = ops.reshape(ops.matmul(ops.matmul(areas, pixels), areas.T), (-1, side**2))
    small = small - ops.mean(small, axis=-1, keepdims=True)
    small = small / ops.maximum(ops.std(small, axis=-1, keepdims=True), 1e-6)
    mean = classifier.outlier_check.mean_image[np.newaxis]
    # To turn the image, or the mean image back, gives the same correlation; three turns more turn it back.
    matches = [turn(turn(turn(mean))) for turn in outliers.TURNS.values()]
    matches = np.reshape(matches, (len(matches), -1)).T.astype(np.float32) / side**2
    flat = [ops.reshape(values, (-1, size**2)) for values in (pixels, neighbours - 4.0 * pixels)]
    measures = [logits, ops.mean(flat[0], axis=-1, keepdims=True)]
    measures += [ops.std(values, axis=-1, keepdims=True) for values in flat] + [ops.matmul(small, matches)]
    return keras.Model(network.inputs[0], network.output | {"measures": ops.concatenate(measures, axis=-1)})


def export_page(
    folder: str | Path,
    output: str | Path,
    data: "XrayData | None" = None,
    runtime: str | Path | None = None,
    **options: bool,
) -> dict[str, Any]:
    """Write a saved classifier as a folder of static files: an export to ONNX, and the page around it.

    Args:
        folder, output, data, options: See :func:`chestxray.deployment.export.export_model`. Without ``data``
            the two networks are compared on phantoms; calibration and thresholds stay.
        runtime: Folder ``dist`` of the npm package :data:`RUNTIME`, to copy its two files. Without it they
            are linked, with their hashes, and the page needs the internet while it loads.

    Returns the comparison. Raises ValueError for another version of the runtime, and as `export_model` does.
    """
    from chestxray.data.dataset import load_data
    from chestxray.deployment.export import export_model

    image = ImageSettings(**read_card(folder)["image"])
    if image.clahe:
        raise ValueError(f"CLAHE is not available in the browser. Received: folder={str(folder)!r}")
    for name, integrity in _RUNTIME_FILES.items() if runtime else ():
        if not (path := Path(runtime) / name).is_file() or _hash("sha384", path.read_bytes()) != integrity:
            message = f"there is no {name} of {RUNTIME} (npm install {RUNTIME})"
            raise ValueError(f"{message}. Received: runtime={str(runtime)!r}")
    data = data or load_data("phantoms", "patient", 0, image)
    parity = export_model(folder, output, "web", data, **options)
    _write_page(Path(output), load_classifier(output), runtime and Path(runtime))
    return parity


def _write_page(folder: Path, classifier: Classifier, runtime: Path | None) -> None:
    image, pattern = classifier.card["image"], np.zeros((classifier.image_settings.size,) * 2, np.uint8)
    sources = [_TEMPLATES / name for name in ("app.js", "style.css", "LICENSES.txt")]
    sources += [lungs.MODEL] if image["resize"] == "lung_box" else []
    for source in sources + ([runtime / name for name in _RUNTIME_FILES] if runtime else []):
        shutil.copy(source, folder)
    (folder / "seen.npz").unlink(missing_ok=True)  # a page does not read it; Python needs refusal.npz
    samples = [f"synthetic-{number}-{subtype}.jpeg" for number, subtype in enumerate(_SAMPLES, 1)]
    for number, (name, subtype) in enumerate(zip(samples, _SAMPLES), 1):
        pixels = np.rot90(render_phantom(subtype, 384, 4000 + number)[0], number == len(samples))
        encoded = cv2.imencode(".jpeg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        (folder / name).write_bytes(encoded)
    loaded = [folder / name for name in samples] + sorted(folder.glob("*.onnx"))
    files = {
        path.name: {"url": path.name, "integrity": _hash("sha384", path.read_bytes())} for path in loaded
    }
    base = "./" if runtime else _RUNTIME_URL
    files[_MACHINE] = {"url": base + _MACHINE, "integrity": _RUNTIME_FILES[_MACHINE]}
    loader = base + _LOADER
    import_map = json.dumps({"imports": {"ort": loader}, "integrity": {loader: _RUNTIME_FILES[_LOADER]}})
    page = render(
        "web/index.html.j2",
        card=classifier.card,
        check=classifier.outlier_check,
        dicom=dicom,
        files=files,
        has_map=classifier.score(pattern, with_maps=True).maps is not None,
        import_map=import_map,
        import_map_hash=_hash("sha256", import_map.encode()),
        runtime_origin="" if runtime else _RUNTIME_URL,
        samples=samples,
        turns=list(outliers.TURNS)[1:],
        version=__version__,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _hash(name: str, content: bytes) -> str:
    return f"{name}-{base64.b64encode(hashlib.new(name, content).digest()).decode()}"


def recommended_model() -> tuple[Path, str]:
    """Return the saved compact model with the best worse of plain and re-framed validation AUROC, and why.

    Without such a record it is the model of phantoms.
    """
    scores, folder = {}, project_path("saved_models")
    for path in sorted(folder.glob("*/model.keras")):
        card = read_card(path.parent)
        metrics, architecture = card["metrics"]["val"], card["parameters"].get("architecture")
        if architecture == "compact_cnn" and "auroc_reframed" in metrics:
            scores[path.parent] = min(metrics[name]["value"] for name in ("auroc", "auroc_reframed"))
    if not scores:
        return folder / "phantom_cnn", "no compact model with re-framed validation images is saved"
    best = max(scores, key=scores.get)
    reason = "the best compact model by the worse of plain and re-framed validation AUROC"
    return best, f"{reason}, {scores[best]:.3f}"


def demo_folder(model: Path, runtime: Path | None) -> Path:
    """Return the folder of a model's page in the cache; the first call makes it."""
    card = json.dumps([read_card(model), RUNTIME, runtime is None]).encode()
    content = b"".join([card, *(path.read_bytes() for path in sorted(_TEMPLATES.iterdir()))])
    name = hashlib.sha256(content).hexdigest()[:24]
    return cached_folder("web", name, lambda new: export_page(model, new / "page", runtime=runtime)) / "page"


def page_server(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Return a server of a folder on 127.0.0.1, to be started by ``serve_forever``; port 0 is a free one."""
    mimetypes.add_type("text/javascript", ".js")  # in Windows the registry may say something else
    mimetypes.add_type("text/javascript", ".mjs")
    silent = type("Silent", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(silent, directory=folder))

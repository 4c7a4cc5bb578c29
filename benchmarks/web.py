"""Speed and size of a model's page in Chromium on one core.

    python benchmarks/web.py MODEL --runtime node_modules/onnxruntime-web/dist [--originals FOLDER]

Measured are the seconds until the page is ready (from the address to enabled buttons, every time in a new
browser, from a server on the same machine) and the milliseconds of an image from its file to score and map,
for phantoms of 224 px and for originals (by default phantoms enlarged to 1,300 px). The network runs at its
own size and, with the same weights, at 224 px. Each number is the median of the rounds and the least one:
another program that needs the core only makes a round slower. The answers are compared with those of Python.
Writes results/benchmarks/web.json.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
from predict import files_of, make_files

from chestxray import load_classifier
from chestxray.data.images import fit
from chestxray.deployment.classifier import write_card
from chestxray.deployment.predict import decode_file, judge
from chestxray.deployment.web import RUNTIME, export_page, page_server
from chestxray.files import project_path, write_json
from chestxray.results import versions

if TYPE_CHECKING:
    from chromium import Browser

MEASURE = """(async () => {{
  const page = await import('./app.js'), times = [];
  for (const row of [...page.rows]) {{
    const rounds = [];
    for (let round = 0; round < {rounds}; round++) {{
      const start = performance.now();
      await page.classify(row.file);
      rounds.push(performance.now() - start);
    }}
    times.push(rounds);
  }}
  return times;
}})()"""


ANSWERS = """import('./app.js').then(page => page.rows.map(
  ({path, status, probability, map}) => ({path, status, probability, map: [...map.values]})))"""


def at_size(model: Path, size: int, folder: Path) -> Path:
    """Write a copy of a compact model whose network has another input; only its speed is of use."""
    original = load_classifier(model)
    network = keras.models.clone_model(original.model, keras.Input((size, size, 1)))
    network.set_weights(original.model.get_weights())
    network.save(folder / "model.keras")
    card = original.card | {"image": original.card["image"] | {"size": size}}
    write_card(folder, replace(original, model=network, card=card))
    return folder


def parity(page: Path, rows: list[dict], paths: list[str]) -> dict[str, float]:
    """Compare the answers of a page with those of the same network in Python."""
    classifier, found = load_classifier(page), {row["path"]: row for row in rows}
    differences, changed, correlations = [], 0, []
    for path in paths:
        [row], page_row = judge(classifier, [Path(path)], "youden", accept_all=True), found[Path(path).name]
        differences.append(abs(row["probability"] - page_row["probability"]))
        [answer] = judge(classifier, [Path(path)], "youden")
        positive = page_row["probability"] >= classifier.threshold("youden")
        same = answer["status"] == page_row["status"] and (
            row["decision"] == classifier.card["classes"][positive]
        )
        changed += not same
        settings = classifier.image_settings
        pixels = fit(decode_file(Path(path), size=settings.size).pixels, settings)
        expected = classifier.score(pixels, with_maps=True).maps.ravel()
        if np.ptp(expected) > 0:
            correlations.append(np.corrcoef(expected, page_row["map"])[0, 1])
    compared = {"images": len(paths), "most_probability_difference": max(differences)}
    return compared | {"answers_changed": changed, "least_map_correlation": float(min(correlations))}


def summary(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "least": float(np.min(values))}


def open_page(address: str) -> "tuple[Browser, float]":
    """Open a page in a new browser on the first core; return it and the seconds until it was ready."""
    sys.path.append(str(project_path("tests/deployment")))
    from chromium import PATH, Browser

    browser = Browser(["taskset", "-c", "0", PATH])
    browser.open(address)
    browser.wait("document.getElementById('status')?.textContent === 'Ready.'", 120)
    return browser, browser.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--runtime", type=Path, required=True)
    parser.add_argument("--originals", type=Path)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    given, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "files").mkdir()
        (folder / "at_224").mkdir()
        files = {"224 px": make_files(folder / "files", 224, given.images)}
        if given.originals:
            files["originals"] = files_of(given.originals, given.images)
        else:
            files["phantoms, 1,300 px"] = make_files(folder / "files", 1300, given.images)
        for size, model in {0: given.model, 224: at_size(given.model, 224, folder / "at_224")}.items():
            page = folder / f"page{size}"
            export_page(model, page, runtime=given.runtime, force=True)
            size = size or load_classifier(page).image_settings.size
            server = page_server(page)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            seconds = []
            for number in range(given.rounds):
                browser, ready = open_page(f"http://127.0.0.1:{server.server_port}/")
                seconds.append(ready)
                if number < given.rounds - 1:
                    browser.close()
            row = {"network": f"{size} px", "ready_seconds": summary(seconds)}
            for name, paths in files.items():
                start = time.perf_counter()
                browser.choose("#files", paths)
                browser.wait("document.getElementById('status').textContent.includes('classified')", 600)
                shown = 1e3 * (time.perf_counter() - start) / len(paths)
                rounds = np.array(browser.evaluate(MEASURE.format(rounds=given.rounds), 600))
                answers = browser.evaluate(ANSWERS)
                times = {"median": float(np.median(rounds)), "least": float(rounds.min(axis=1).mean())}
                row[name] = {"milliseconds": times, "milliseconds_with_table": shown}
                row[name]["parity"] = parity(page, answers, paths)
                browser.click("#clear")
            browser.close()
            server.shutdown()
            sizes = {path.name: path.stat().st_size for path in page.iterdir()}
            runtime = sum(sizes[path.name] for path in given.runtime.iterdir() if path.name in sizes)
            row |= {"bytes": sum(sizes.values()) - runtime, "bytes_of_runtime": runtime}
            rows.append(row)
            print(row, flush=True)
            shutil.rmtree(page)
    result = {"schema": "chestxray.benchmark/1", "name": "web", "model": given.model.name, "rows": rows}
    result |= {"images": given.images, "rounds": given.rounds, "runtime": RUNTIME}
    result |= {"load_average": os.getloadavg()[0], "versions": versions()}
    write_json(project_path("results/benchmarks/web.json"), result)


if __name__ == "__main__":
    main()

"""Set-up of Google Colab, run by the first cell of each notebook: packages and the path of imports."""

import os
import subprocess
import sys

PACKAGES = ["papermill", "opencv-python>=4.10", "ai-edge-litert", "onnxruntime", "onnx", "tf2onnx>=1.17"]
PACKAGES += ["simplemma>=2,<2.1"]

subprocess.run([sys.executable, "-m", "pip", "install", "-q", *PACKAGES], check=True)
sys.path.insert(0, "..")
os.environ["PYTHONPATH"] = os.path.abspath("..")  # of processes that notebooks start

"""Build the empty wheels of this folder: `python stand_ins/build.py`. Run it again after a change of the tables below.

ppdiffusers and paddlenlp depend on packages that nothing in this toolkit imports. One of them has no wheel and needs a
C compiler, one needs libGL, and together they bring 0.7 GB. requirements.txt names this folder with --find-links;
version 9999 is newer than any release, so pip takes the empty wheel unless the real package is installed already.
"""

import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
VERSION = "9999+left.out"

# Package -> (its module, why it can be left out).
LEFT_OUT = {
    "av": ("av", "video writer of ppdiffusers' LVDM pipeline"),
    "blobfile": ("blobfile", "imported nowhere in paddlenlp; brings lxml and pycryptodomex"),
    "hf-transfer": ("hf_transfer", "used by huggingface_hub if HF_HUB_ENABLE_HF_TRANSFER=1 alone"),
    "ligo-segments": ("ligo", "imported nowhere in ppdiffusers; has no wheel, needs a C compiler and Python's headers"),
    "note-seq": ("note_seq", "music pipeline of ppdiffusers; brings librosa, numba, bokeh, IPython"),
    "onnx": ("onnx", "export to ONNX in paddlenlp's server and taskflow"),
    "opencv-python": ("cv2", "video in ppdiffusers, an image backend that Paddle does not use here; needs libGL"),
    "paddle2onnx": ("paddle2onnx", "export to ONNX in paddlenlp's server and taskflow"),
}
# `pip install --find-links stand_ins/gpu '.[gpu]'` takes the place of the CPU wheel by the GPU one.
GPU = ("paddlepaddle", "3.3.1+gpu", "paddlepaddle-gpu==3.3.1")


def build_wheel(folder: Path, name: str, version: str, summary: str, requires: str | None = None) -> Path:
    """Write a wheel without modules, byte for byte the same on every machine; returns its path."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: stand_ins/build.py\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {"METADATA": metadata, "WHEEL": wheel}
    files["RECORD"] = "".join(f"{stem}.dist-info/{file},,\n" for file in (*files, "RECORD"))
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(f"{stem}.dist-info/{file}", (2000, 1, 1, 0, 0, 0)), text)
    return path


def build_all(folder: Path) -> list[Path]:
    """Write every wheel into `folder`, the GPU one into its subfolder gpu; returns their paths."""
    (folder / "gpu").mkdir(exist_ok=True)
    paths = [build_wheel(folder, name, VERSION, f"Empty stand-in: {reason}") for name, (_, reason) in LEFT_OUT.items()]
    name, version, requires = GPU
    return [*paths, build_wheel(folder / "gpu", name, version, f"Empty stand-in for {requires}", requires)]


if __name__ == "__main__":
    for built in build_all(FOLDER):
        print(built.relative_to(FOLDER))

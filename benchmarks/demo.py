"""From an ONNX file to a program that reads text: compile, save, load in a new process, compare.

    python benchmarks/demo.py
    python benchmarks/demo.py --text "other words"

Draws an image with text in it, compiles PP-OCR's text recogniser (a pretrained model from the
package rapidocr) to a .gopt, and runs that in a process which never imports the compiler. Then
both engines take turns on the same image: error and latency come from `graphopt.bench`. Exit
status 1 if the text is not read exactly or the comparison fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

Array = np.ndarray[Any, Any]

HEIGHT = 48  # what the recogniser was trained on
OUT = Path(__file__).resolve().parent.parent / "out" / "demo"


def draw(text: str, path: Path) -> Array:
    """Draw `text` black on white, HEIGHT pixels high; write a PNG, return RGB [h, w, 3] uint8."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=30)
    left, top, right, bottom = font.getbbox(text)
    margin = 10
    # A multiple of 8, the recogniser's stride along the line.
    width = -(-round(right - left + 2 * margin) // 8) * 8
    image = Image.new("RGB", (width, HEIGHT), "white")
    origin = (margin - left, (HEIGHT - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(origin, text, "black", font)
    image.save(path)
    return np.asarray(image)


def preprocess(rgb: Array) -> Array:
    """Return the recogniser's input [1, 3, h, w] float32: BGR scaled to −1 … 1."""
    bgr = rgb[:, :, ::-1].astype(np.float32)
    return np.ascontiguousarray(((bgr / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])


def alphabet(model: Path) -> list[str]:
    """Return the character of each class: class 0 is CTC's blank, the last one a space."""
    import onnx

    loaded = onnx.load(model, load_external_data=False)
    characters = {entry.key: entry.value for entry in loaded.metadata_props}["character"]
    return ["", *characters.splitlines(), " "]


def decode(scores: Array, characters: list[str]) -> str:
    """Greedy CTC on [steps, classes]: the best of each step, repeats merged, blanks dropped."""
    best = scores.argmax(axis=-1)
    kept = [k for i, k in enumerate(best) if k != 0 and (i == 0 or k != best[i - 1])]
    return "".join(characters[k] for k in kept)


def run_artifact(artifact: Path, image: Path, scores: Path) -> None:
    """What the new process does: load, run once, store the scores."""
    import graphopt

    start = time.perf_counter()
    program = graphopt.load(artifact)
    result = program.run({"x": np.load(image)})
    seconds = time.perf_counter() - start
    np.save(scores, next(iter(result.values()))[0])
    compiler = "tvm" in sys.modules
    print(
        f"loaded and ran once in {seconds:.2f} s; compiler imported: {'yes' if compiler else 'no'}"
    )


def main() -> int:
    """Compile, save, load elsewhere, read, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="ONNX in, 48 pixels of text out")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--run", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_artifact(*arguments.run)
        return 0

    from catalogue import select

    import graphopt
    from graphopt.bench import bench

    console = Console(highlight=False, soft_wrap=True)
    (recogniser,) = select(["ppocr_rec"])
    model = recogniser.locate()
    if model is None:
        console.print("rapidocr is not installed: pip install --no-deps rapidocr==3.10.0")
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    picture, artifact = OUT / "text.png", OUT / "recogniser.gopt"
    x = preprocess(draw(arguments.text, picture))
    np.save(OUT / "image.npy", x)

    console.print(f"image    {picture.relative_to(OUT.parent.parent)}, input {x.shape}")
    start = time.perf_counter()
    program = graphopt.compile(model, shapes={"x": x.shape}, threads=arguments.threads)
    seconds = time.perf_counter() - start
    program.save(artifact)
    size = artifact.stat().st_size / 2**20
    console.print(f"compile  {model.name} in {seconds:.1f} s -> {artifact.name}, {size:.1f} MB")

    exchanged = (artifact, OUT / "image.npy", OUT / "scores.npy")
    command = [sys.executable, __file__, "--run", *map(str, exchanged)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    console.print(f"process  {ran.stdout.strip()}")
    text = decode(np.load(OUT / "scores.npy"), alphabet(model))
    console.print(f"drawn    [bold]{escape(arguments.text)}[/]")
    console.print(f"read     [bold]{escape(text)}[/]")

    row = bench(
        model,
        vs=("onnxruntime",),
        artifact=artifact,
        inputs={"x": x},
        threads=arguments.threads,
    )
    for failure in row.failures:
        console.print(f"[red]failed   {failure}")
    if row.peers[0].latencies and row.subject.latencies:
        ratio = row.ratios["onnxruntime"]
        console.print(f"error    {row.subject.error:.1e} relative to ONNX Runtime (limit 1e-4)")
        console.print(
            f"latency  graphopt {row.subject.latency * 1e3:.2f} ms   "
            f"ONNX Runtime {row.peers[0].latency * 1e3:.2f} ms   "
            f"ratio {ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f}), {row.threads} threads"
        )
    return 0 if row.ok and text == arguments.text else 1


if __name__ == "__main__":
    sys.exit(main())

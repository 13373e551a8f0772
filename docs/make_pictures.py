"""Make the pictures of the README and of docs/ anew.

    python docs/make_pictures.py                  # all of them, in about ten minutes on two cores
    python docs/make_pictures.py compare app      # some of them

All but the architecture are of the quickstart's run, which is made where it is absent. The screenshots need Chromium
and requirements-test.txt, that of the web page `sh setup_app.sh` too. Look at the pictures before committing them.
"""

import argparse
import contextlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RUN = "quickstart_out/model"
FILE_LIST = "quickstart_out/processed_data/filelist/custom_dataset.filelist.list"
CAPTIONS = (
    "a red circle on a black background",
    "a green triangle on a white background",
    "a blue square on a black background",
    "a yellow circle on a white background",
)


def run(*command: str) -> None:
    """Run a command in the project's folder with this environment's programs; ends the script if it fails."""
    print("+", *command, flush=True)
    environ = os.environ | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=ROOT, env=environ, check=True)


@contextlib.contextmanager
def served(*command: str) -> Iterator[str]:
    """The address of a server that listens at the port appended to its command, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = os.environ | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
    server = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environ, start_new_session=True)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if server.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with exit code {server.returncode}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextlib.contextmanager
def browser_page(width: int, height: int) -> Iterator["Page"]:
    """A page of a headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium here; apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": width, "height": height})
        browser.close()


def quickstart() -> None:
    """quickstart.png: the grid with which the quickstart ends."""
    run("sh", "quickstart.sh")
    shutil.copyfile(ROOT / "quickstart_out/samples/grid.png", DOCS / "quickstart.png")


def compare() -> None:
    """compare.png: the quickstart's two checkpoints and its moving average, by the same prompts and noise."""
    checkpoints = [f"{RUN}/checkpoint-300", f"{RUN}/checkpoint-600", f"{RUN}/checkpoint-600:ema"]
    settings = ["--guidance_scale", "3", "--num_inference_steps", "20", "--device", "cpu"]
    grid = "quickstart_out/compare.png"
    run("python", "eval.py", "--compare", *checkpoints, "--prompt", *CAPTIONS, *settings, "--output", grid)
    shutil.copyfile(ROOT / grid, DOCS / "compare.png")


def fid_clip() -> None:
    """fid_clip.png: FID against CLIP score, by the command of docs/sampling.md."""
    models = ["--clip_model", "demo/tiny_clip", "--fid_model", "demo/tiny_clip", "--fid_reference", FILE_LIST]
    scales = ["--guidance_scales", "1", "2", "3", "5", "8", "--num_inference_steps", "10"]
    prompts = ["--prompts_file", "demo/captions.txt", "--output", "quickstart_out/metrics"]
    run("python", "eval.py", "--metrics", "--unet", RUN, "--variant", "ema", *prompts, *scales, *models)
    shutil.copyfile(ROOT / "quickstart_out/metrics/curve.png", DOCS / "fid_clip.png")


def golden() -> None:
    """golden.png: scores of the demo's recipe within its band."""
    run("sh", "demo/golden.sh", "sound", "--seed", "11")
    shutil.copyfile(ROOT / "golden_out/sound/scores/curves.png", DOCS / "golden.png")


def visualdl() -> None:
    """visualdl.png and visualdl_images.png: the pages of scalars and of pictures."""
    with served("visualdl", "--logdir", RUN) as url, browser_page(1400, 900) as page:
        page.goto(f"{url}/app/scalar")
        page.locator("canvas").first.wait_for(timeout=120_000)  # of the first group, which is open
        page.wait_for_timeout(4000)  # the curves are drawn step by step
        page.screenshot(path=DOCS / "visualdl.png")
        page.goto(f"{url}/app/sample/image")
        page.locator("img").first.wait_for(timeout=120_000)
        page.wait_for_timeout(4000)
        page.screenshot(path=DOCS / "visualdl_images.png")


def app() -> None:
    """app.png: the web page after two prompts."""
    with (
        served("python", "app.py", "--output_dir", RUN, "--output", "quickstart_out/app") as url,
        browser_page(1240, 1240) as page,
    ):
        page.goto(url)
        page.locator("#status p").filter(has_text="to choose from").wait_for()
        page.get_by_label("Steps").fill("20")
        page.get_by_label("Guidance scale").fill("3")
        page.get_by_label("Pictures", exact=True).fill("2")
        for caption in reversed(CAPTIONS[:2]):
            page.get_by_label("Prompt", exact=True).fill(caption)
            page.locator("#draw").click()
            page.locator("#draw:disabled").wait_for()
            page.locator("#draw:enabled").wait_for(timeout=240_000)
        page.wait_for_timeout(2000)
        page.screenshot(path=DOCS / "app.png")


def architecture() -> None:
    """architecture.svg."""
    runpy.run_path(str(DOCS / "draw_architecture.py"), run_name="__main__")


PICTURES = {
    picture.__name__: picture for picture in (quickstart, compare, fid_clip, golden, visualdl, app, architecture)
}


def main() -> None:
    """Make the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(PICTURES)} (default: all)")
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"{', '.join(sorted(unknown))}: no such picture; choose from {', '.join(PICTURES)}")
    if names != ["architecture"] and not (ROOT / RUN / "checkpoint-600").exists():
        names = ["quickstart", *(name for name in names if name != "quickstart")]
    for name in names:
        PICTURES[name]()


if __name__ == "__main__":
    main()

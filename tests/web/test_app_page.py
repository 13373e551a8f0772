"""The web page for real: started as people start it, and driven by a headless Chromium (marked slow)."""

import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sd.sampling.files import read_png_text
from tests.checkpoints import make_output_dir, save_checkpoint
from tests.holding import free_port, wait_until_ended
from tests.tiny import make_tiny_repository

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv-app/bin/python").exists(), reason="the web page's packages are not installed: sh setup_app.sh"
)


def start(output_dir, pictures, port):
    command = [sys.executable, str(ROOT / "app.py"), "--output_dir", str(output_dir), "--output", str(pictures)]
    return subprocess.Popen(
        [*command, "--device", "cpu", "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    repository = make_tiny_repository(tmp_path_factory.mktemp("tiny"))
    output_dir = make_output_dir(repository, folder)
    port, pictures = free_port(), folder / "pictures"
    process = start(output_dir, pictures, port)
    url = f"http://127.0.0.1:{port}/"
    assert process.stdout.readline() == f"web page: {url} (Ctrl-C ends it)\n"
    yield SimpleNamespace(
        url=url, port=port, pictures=pictures, output_dir=output_dir, repository=repository, process=process
    )
    process.terminate()
    assert process.wait(30) == 0, process.stderr.read()


def test_the_page_names_nothing_outside(app):
    sources = re.findall(r"""(?:src|href)=["']?(https?:[^"'> ]+)""", read(app.url))
    assert [source for source in sources if not source.startswith(app.url)] == []
    listening = {c.laddr.ip for c in psutil.Process(app.process.pid).net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_a_port_in_use_is_named(app, tmp_path):
    process = start(app.output_dir, tmp_path / "p", app.port)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and "Traceback" not in error
    assert error.endswith(f"error: --port {app.port} at 127.0.0.1 cannot be used; choose another\n")


def test_no_process_outlives_a_killed_page(app, tmp_path):
    process = start(app.output_dir, tmp_path / "p", free_port())
    process.stdout.readline()
    engines = psutil.Process(process.pid).children()
    assert len(engines) == 1 and "sd.web.engine" in engines[0].cmdline()
    process.kill()
    wait_until_ended([engines[0].pid])
    process.communicate()


@pytest.fixture(scope="module")
def browser(app):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_app(page, app):
    """Go to the page and wait for its list of checkpoints: drawn before it has come, there is none to draw from."""
    page.goto(app.url)
    page.locator("#status p").filter(has_text="to choose from").wait_for()
    page.get_by_label("Steps").fill("2")


@pytest.fixture
def page(app, browser):
    page = browser.new_page()
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    open_app(page, app)
    yield page
    page.close()
    assert [url for url in requested if not url.startswith((app.url, "data:", "blob:"))] == []


def draw(page, waited_for, **fields):
    """Fill fields by their labels, press Draw, and return the status line once it holds what is waited for."""
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " "), exact=label == "Prompt").fill(value)
    page.get_by_role("button", name="Draw").click()
    line = page.locator("#status p")
    line.filter(has_text=waited_for).wait_for(timeout=60_000)
    return line.inner_text()


@pytest.mark.slow
@pytest.mark.ci
def test_a_prompt_typed_becomes_a_picture(app, page):
    assert draw(page, "1 picture drawn", Prompt="a red circle", Seed="7") == "1 picture drawn"
    image = page.locator("#gallery button img").first
    assert image.evaluate("image => image.complete && image.naturalWidth") == 24
    (path,) = app.pictures.glob("a-red-circle-*-7.png")
    shown = page.request.get(image.evaluate("image => image.src")).body()
    assert shown == path.read_bytes() and read_png_text(path)[0] == "a red circle"
    assert (
        "a red circle (seed 7) · checkpoint-10, guidance 7.5 · 2 steps ddim, 24 x 24"
        in page.locator("#gallery").inner_text()
    )
    draw(page, "1 picture drawn", Seed="8")
    page.locator("#gallery button img").nth(1).click()
    page.locator("#settings").get_by_text("a-red-circle").filter(has_text="-7.png").wait_for()


@pytest.mark.slow
@pytest.mark.ci
def test_a_wrong_value_is_explained_and_can_be_corrected(app, page):
    reported = draw(page, "expected", Prompt="a", Guidance_scale="0.5")
    assert reported == "Guidance scale 0.5; expected at least 1, which is no guidance"
    assert page.get_by_role("alert").filter(has_text=reported).count() == 1
    assert "number" in draw(page, "whole number", Guidance_scale="2", Seed="1.5")
    assert draw(page, "does not fit", Seed="1", Width="30").endswith("try 32")
    assert draw(page, "picture drawn", Width="32") == "1 picture drawn"


@pytest.mark.slow
@pytest.mark.ci
def test_checkpoints_are_switched_and_listed_again(app, page):
    page.get_by_label("Checkpoint", exact=True).click()
    page.get_by_role("option", name="checkpoint-5").click()
    page.get_by_label("ema", exact=True).first.wait_for(state="detached")  # it has no moving average
    save_checkpoint(app.repository, app.output_dir, 20, ema=True)
    page.get_by_role("button", name="Look for new checkpoints").click()
    page.locator("#status p").filter(has_text="3 to choose from").wait_for()
    page.get_by_label("Checkpoint", exact=True).click()
    page.get_by_role("option", name="checkpoint-20").click()
    page.get_by_label("ema", exact=True).first.click()
    draw(page, "1 picture drawn", Prompt="b")
    assert "checkpoint-20 ema" in page.locator("#gallery").inner_text()


@pytest.mark.slow
@pytest.mark.ci
def test_a_drawing_is_cancelled_and_another_waits_for_its_turn(app, page, browser):
    for label, value in {"Prompt": "long", "Steps": "300", "Pictures": "4", "Width": "128", "Height": "128"}.items():
        page.get_by_label(label, exact=label in ("Prompt", "Pictures")).fill(value)
    page.get_by_role("button", name="Draw").click()
    page.locator("#status p").filter(has_text=re.compile(r"drawing, [1-3]\.[1-9] of 4 pictures")).wait_for(
        timeout=120_000
    )
    other = browser.new_page()
    open_app(other, app)
    other.get_by_label("Prompt", exact=True).fill("another")
    other.get_by_role("button", name="Draw").click()
    other.locator("#status p").filter(has_text="waiting for its turn").wait_for()
    page.get_by_role("button", name="Cancel").click()
    reported = page.locator("#status p").filter(has_text=re.compile("cancelled, .* drawn and kept"))
    reported.wait_for(timeout=30_000)
    stored = int(re.search(r"cancelled, (\d)", reported.inner_text())[1])
    assert 1 <= stored == page.locator("#gallery button img").count() == len(list(app.pictures.glob("long-*.png")))
    other.locator("#status p").filter(has_text="1 picture drawn").wait_for(timeout=30_000)
    other.close()


@pytest.mark.slow
@pytest.mark.ci
def test_a_drawing_process_that_dies_is_explained_and_replaced(app, page):
    (engine,) = psutil.Process(app.process.pid).children()
    draw(page, "picture drawn", Prompt="before")
    for label, value in {"Steps": "999", "Width": "128", "Height": "128"}.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Prompt", exact=True).fill("during")
    page.get_by_role("button", name="Draw").click()
    page.locator("#status p").filter(has_text="of 1 pictures").wait_for(timeout=60_000)
    engine.kill()
    page.locator("#status p").filter(has_text="most likely out of memory").wait_for()
    assert draw(page, "picture drawn", Prompt="after", Steps="2", Width="", Height="") == "1 picture drawn"


# What a person sees.

# Contrast of each visible text with what is behind it, by WCAG 2.1's formula; disabled controls are exempt there.
CONTRASTS = """() => {
    const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if (color.length === 3 || color[3] > 0.99) return color;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim()).map((n) => n.data.trim());
        if (element.placeholder && !element.value) text.push(element.placeholder);
        if (!text.length || !element.checkVisibility() || element.closest(":disabled, script, style")) continue;
        const style = getComputedStyle(element, element.placeholder && !element.value ? "::placeholder" : null);
        const [a, b] = [luminance(parse(style.color)), luminance(behind(element))].sort((x, y) => y - x);
        found.push([text.join(" "), (a + 0.05) / (b + 0.05)]);
    }
    return found;
}"""


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_prompt_draw_and_status_are_seen_without_scrolling_and_all_text_is_readable(app, page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    boxes = {name: page.locator(f"#{name}").bounding_box() for name in ("prompt", "draw", "status", "gallery")}
    for name in ("prompt", "draw", "status"):
        assert boxes[name]["y"] + boxes[name]["height"] < height / 2, boxes
        assert boxes[name]["x"] >= 0 and boxes[name]["x"] + boxes[name]["width"] <= width
    assert boxes["gallery"]["y"] < height
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    draw(page, "1 picture drawn", Prompt="a long prompt whose every word is to be read below its picture", Seed="3")
    label = page.locator("#gallery .caption-label").first
    assert label.evaluate("e => e.scrollWidth <= e.clientWidth + 1 && e.scrollHeight <= e.clientHeight + 1")
    gallery, image = page.locator("#gallery").bounding_box(), page.locator("#gallery img").first.bounding_box()
    assert image["width"] <= gallery["width"] and image["y"] + image["height"] <= gallery["y"] + gallery["height"]
    page.locator("#draw:enabled").wait_for()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20 and {"Draw", "of the first"} <= {text for text, _ in contrasts}
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []


@pytest.mark.slow
@pytest.mark.ci
def test_an_empty_prompt_is_refused_and_the_trained_size_is_shown(app, page):
    expect = pytest.importorskip("playwright.sync_api").expect
    for label in ("Width", "Height"):  # which the page shows some time after the list of checkpoints
        expect(page.get_by_label(label)).to_have_value("24", timeout=60_000)
    assert draw(page, "the prompt is empty", Prompt="  ") == "the prompt is empty; type what is to be drawn"


@pytest.mark.slow
@pytest.mark.ci
def test_two_checkpoints_are_compared_from_the_same_noise(app, page):
    page.get_by_role("tab", name="Compare two").click()
    assert draw(page, "B: 2 pictures drawn", Prompt="compared", Pictures="2") == "B: 2 pictures drawn"
    sides = {side: page.locator(f"#pair-{side}") for side in "AB"}
    for side in sides.values():
        side.locator("img").nth(1).wait_for()
        assert re.findall(r"seed (\d+)", side.inner_text()) == ["42", "43"]
    assert "checkpoint-5" in sides["A"].inner_text() and "checkpoint-5" not in sides["B"].inner_text()
    first = [side.locator("img").first.evaluate("image => image.src") for side in sides.values()]
    settings = [read_png_text(app.pictures / Path(source).name)[1] for source in first]
    assert {(known["seed"], known["guidance_scale"]) for known in settings} == {(42, 7.5)}
    assert settings[0]["weights"] != settings[1]["weights"]

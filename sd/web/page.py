"""The web page of app.py (Gradio): a prompt and settings in, pictures with their settings out.

It runs in an environment of its own (requirements-app.txt) and knows no Paddle: `sd.web.engine` does the work.
Nothing leaves the machine: no analytics, no share link, no fonts or scripts from elsewhere.
"""

import json
import os
import shutil
import signal
import sys
import tempfile

_HERE = tempfile.mkdtemp(prefix="sd-app-")
_PROXY_FREE = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "", "127.0.0.1", "localhost"]
# Read when Gradio is imported. It asks its own address whether it is up, which a proxy must not answer.
os.environ |= {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_TEMP_DIR": _HERE,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "no_proxy": ",".join(filter(None, _PROXY_FREE)),
}

import gradio as gr  # noqa: E402

from sd.errors import InputError, run_script  # noqa: E402
from sd.web.client import Drawer, Visitors, caption, details, follow, status  # noqa: E402

_FONTS = ["system-ui", "sans-serif"]
_THEME = gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"])
_CSS = ".sd-error { color: #b00020; font-weight: 600 } .sd-info { opacity: 0.8 } footer { display: none !important }"
_ASKED = (
    "model", "weights", "prompt", "negative_prompt", "guidance_scale", "num_inference_steps", "seed", "num_images",
    "width", "height", "scheduler",
)  # fmt: skip
_SAMPLERS = ["auto", "ddim", "pndm", "lms", "euler", "heun", "dpm"]


def build(drawer, title):
    """The page. drawer: a `Drawer`; title: a line that says what is served."""
    visitors = Visitors(drawer)

    def list_models(chosen=None):
        answers = list(drawer.ask(drawer.new_job(), {"do": "list"}))
        models = next((answer["choices"] for answer in answers if "choices" in answer), [])
        chosen = chosen if chosen in models else next(iter(models), None)
        if message := answers[-1].get("message"):
            return gr.Dropdown(choices=models, value=chosen), status(message, "error")
        told = f"{len(models)} to choose from" if models else "no checkpoint yet; training saves the first one soon"
        return gr.Dropdown(choices=models, value=chosen), status(told)

    def begin(request: gr.Request):
        visitors.expect(request.session_hash)
        return status("waiting for its turn"), gr.Button(interactive=False), gr.Button(interactive=True)

    def draw(request: gr.Request, shown, *values):
        asked = dict(zip(_ASKED, values, strict=True))
        asked |= {name: asked[name] or None for name in ("width", "height")}
        asked["scheduler"] = None if asked["scheduler"] == _SAMPLERS[0] else asked["scheduler"]
        answers = visitors.draw(request.session_hash, asked)
        for pictures, line in follow(answers, shown, asked["prompt"]):
            if pictures is None:
                yield gr.skip(), gr.skip(), gr.skip(), line
            else:
                yield (
                    pictures,
                    [(picture["path"], caption(picture)) for picture in pictures],
                    details(pictures[0]),
                    line,
                )

    def choose(shown, chosen: gr.SelectData):
        return details(shown[chosen.index])

    def end():
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def give_up(request: gr.Request):
        visitors.give_up(request.session_hash)

    with gr.Blocks(title="Stable Diffusion", analytics_enabled=False) as page:
        gr.Markdown(f"## Stable Diffusion\n{title}")
        shown = gr.State([])
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                with gr.Row(equal_height=True):
                    model = gr.Dropdown([], label="Checkpoint", scale=3, min_width=160)
                    refresh = gr.Button("Refresh", scale=1, min_width=80)
                weights = gr.Radio(["raw", "ema"], value="raw", label="Weights", info="ema: their moving average")
                prompt = gr.Textbox(label="Prompt", lines=2, placeholder="what to draw", elem_id="prompt")
                negative = gr.Textbox(label="Negative prompt", placeholder="what guidance leads away from")
                with gr.Row():
                    guidance = gr.Number(7.5, label="Guidance scale", info="1 is none", min_width=100)
                    steps = gr.Number(50, label="Steps", info="1 to 999", min_width=100)
                    sampler = gr.Dropdown(_SAMPLERS, label="Sampler", info="auto: as trained", min_width=100)
                with gr.Row():
                    seed = gr.Number(42, label="Seed", info="of the first", min_width=100)
                    count = gr.Number(1, label="Pictures", info="up to 16", min_width=100)
                with gr.Row():
                    width = gr.Number(0, label="Width", info="0: as trained", min_width=100)
                    height = gr.Number(0, label="Height", info="0: as trained", min_width=100)
                with gr.Row():
                    go = gr.Button("Draw", variant="primary", min_width=100)
                    cancel = gr.Button("Cancel", interactive=False, min_width=100)
            with gr.Column(scale=2, min_width=480):
                line = gr.HTML(status("loading"), elem_id="status")
                gallery = gr.Gallery(
                    label="Pictures, the newest first", columns=4, height=420, object_fit="contain", format="png",
                    buttons=["download", "fullscreen"], interactive=False, elem_id="gallery",
                )  # fmt: skip
                facts = gr.JSON(label="Settings of the newest picture, or of the one clicked on", elem_id="settings")
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        asked = [shown, model, weights, prompt, negative, guidance, steps, seed, count, width, height, sampler]
        page.load(list_models, None, [model, line], concurrency_id="list", **quiet)
        refresh.click(list_models, model, [model, line], concurrency_id="list", **quiet)
        gr.on([go.click, prompt.submit], begin, None, [line, go, cancel], queue=False, **quiet).then(
            draw, asked, [shown, gallery, facts, line], concurrency_id="draw", concurrency_limit=1, **quiet
        ).then(end, None, [go, cancel], queue=False, **quiet)
        gallery.select(choose, shown, facts, queue=False, **quiet)
        cancel.click(give_up, queue=False, **quiet)
        page.unload(give_up)
    return page


def main():
    """Serve the page until Ctrl-C or SIGTERM. sys.argv[1]: JSON of what app.py was told."""
    told = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    drawer = Drawer(told["engine"])
    drawer.start()
    try:
        page = build(drawer, told["title"]).queue(max_size=32)
        try:
            page.launch(
                server_name=told["host"], server_port=told["port"], share=False, ssr_mode=False, mcp_server=False,
                quiet=True, show_error=True, footer_links=[], allowed_paths=[told["output"]], prevent_thread_lock=True,
                theme=_THEME, css=_CSS, enable_monitoring=False, run_history=False,
            )  # fmt: skip
        except (OSError, ValueError):  # its messages name settings of Gradio's that are not ours
            raise InputError(f"port={told['port']} at {told['host']} cannot be used; choose another --port") from None
        print(f"web page: {page.local_url} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    finally:
        drawer.stop()
        shutil.rmtree(_HERE, ignore_errors=True)


if __name__ == "__main__":
    run_script(main)

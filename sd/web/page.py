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
from sd.web.client import EngineProcess, PageSessions, caption, details, follow_each, status  # noqa: E402

_FONTS = ["system-ui", "sans-serif"]
_INK, _HINT, _ACCENT = "#1f2937", "#4b5563", "#1d4ed8"  # on white at least 4.5 : 1, the contrast of WCAG 2.1 AA
_THEME = gr.themes.Default(primary_hue="blue", font=_FONTS, font_mono=["ui-monospace", "monospace"]).set(
    body_text_color=_INK,
    color_accent=_ACCENT,
    body_text_color_subdued=_HINT,
    block_info_text_color=_HINT,
    block_label_text_color=_INK,
    block_title_text_color=_INK,
    input_placeholder_color="#6b7280",
    button_primary_background_fill=_ACCENT,
    button_primary_background_fill_hover="#1e40af",
    button_primary_text_color="white",
    # In dark mode Gradio's own light text stands on dark blocks; its grey hints do not reach 4.5 there.
    body_text_color_subdued_dark="#d1d5db",
    block_info_text_color_dark="#d1d5db",
    input_placeholder_color_dark="#9ca3af",
    button_primary_background_fill_dark=_ACCENT,
    button_primary_background_fill_hover_dark="#1e40af",
)
_CSS = """
.sd-error { color: #b00020; font-weight: 600 }
.dark .sd-error { color: #fca5a5 }
.sd-info { color: inherit }
footer { display: none !important }
.gradio-container { padding-top: 8px !important }
#status, #settings { padding: 0 !important }
#status p { margin: 0; min-height: 1.5em }
#settings { overflow-x: auto }
#settings caption { text-align: left; font-weight: 600 }
#settings th { text-align: left; font-weight: 400 }
#settings :is(th, td) { border: 0; padding: 1px 1em 1px 0; overflow-wrap: anywhere }
:is(#gallery, .pair) .grid-wrap { padding-top: 30px }
#gallery .grid-wrap, .pair .grid-wrap { min-height: 120px !important; max-height: none !important; height: auto }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(220px, 45%), 1fr)) }
#gallery .thumbnail-item, .pair .thumbnail-item { aspect-ratio: auto; height: auto; overflow: visible }
#gallery .thumbnail-item img, .pair .thumbnail-item img { height: auto }
#gallery .caption-label, .pair .caption-label {
    position: static; max-width: 100%; white-space: normal; overflow: visible; text-overflow: clip; text-align: left;
    color: inherit; background: transparent; font-size: 13px;
}
"""
_SETTINGS = (
    "prompt", "negative_prompt", "guidance_scale", "num_inference_steps", "seed", "num_images", "width", "height",
    "scheduler",
)  # fmt: skip
_SAMPLERS = ["auto", "ddim", "pndm", "lms", "euler", "heun", "dpm"]
_SIDES = ("A", "B")


def _model_picker(label: str, weights_label: str) -> tuple[gr.Dropdown, gr.Radio]:
    """A choice of checkpoint and of its weights."""
    model = gr.Dropdown([], label=label, min_width=150, scale=3)
    weights = gr.Radio(["raw", "ema"], value="raw", label=weights_label, min_width=120, scale=1)
    return model, weights


def _gallery(label: str, columns: int, **names: str) -> gr.Gallery:
    return gr.Gallery(
        label=label, columns=columns, height="auto", object_fit="contain", format="png",
        buttons=["download", "fullscreen"], interactive=False, **names,
    )  # fmt: skip


def _gallery_items(pictures: list[dict]) -> list[tuple[str, str]]:
    return [(picture["path"], caption(picture)) for picture in pictures]


def _offer_weights(models_state, model, weights):
    """The weights that a checkpoint has; what it has not cannot be chosen."""
    has = models_state.get(model, {}).get("weights", ["raw"])
    return gr.Radio(choices=has, value=weights if weights in has else has[0])


def _trained_size(models_state, model):
    side = models_state.get(model, {}).get("side")
    return (side, side) if side else (gr.skip(), gr.skip())


def _requests_of(tab, models, values):
    inputs = dict(zip(_SETTINGS, values, strict=True))
    inputs |= {name: inputs[name] or None for name in ("width", "height")}
    inputs["scheduler"] = None if inputs["scheduler"] == _SAMPLERS[0] else inputs["scheduler"]
    chosen = [models[:2]] if tab == "one" else [models[2:4], models[4:6]]
    return [inputs | {"model": model, "weights": weights} for model, weights in chosen]


def _choose(pictures_state, chosen: gr.SelectData):
    return details(pictures_state[chosen.index])


def _end():
    return gr.Button(interactive=True), gr.Button(interactive=False)


class _Handlers:
    """What the page's events call: the engine is asked, and each visitor draws in a session of their own."""

    def __init__(self, engine: EngineProcess):
        self._engine, self._sessions = engine, PageSessions(engine)

    def _query(self, what):
        return list(self._engine.submit(self._engine.new_job(), {"do": what}))

    def list_models(self, *chosen):
        """Fill the three choices of a checkpoint: the newest; for the comparison the oldest beside the newest."""
        answers = self._query("list")
        models_state = next((answer["choices"] for answer in answers if "choices" in answer), {})
        names = list(models_state)
        usual = (names[:1], names[-1:], names[:1])
        picked = [old if old in models_state else next(iter(new), None) for old, new in zip(chosen, usual, strict=True)]
        if message := answers[-1].get("message"):
            line = status(message, "error")
        else:
            line = status(f"{len(names)} to choose from" if names else "no checkpoint yet; training saves one soon")
        return models_state, *(gr.Dropdown(choices=names, value=name) for name in picked), line

    def list_examples(self):
        captions = next((answer["examples"] for answer in self._query("examples") if "examples" in answer), [])
        return gr.Dataset(samples=[[text] for text in captions], visible=bool(captions))

    def begin(self, request: gr.Request):
        self._sessions.expect(request.session_hash)
        return status("waiting for its turn"), gr.Button(interactive=False), gr.Button(interactive=True)

    def draw(self, request: gr.Request, tab, pictures_state, *values):
        requests = _requests_of(tab, values[:6], values[6:])
        earlier, heads = (pictures_state, [""]) if tab == "one" else ([], [f"{side}: " for side in _SIDES])
        drawn = [[], []]
        answers = self._sessions.draw_each(request.session_hash, requests)
        for number, pictures, line in follow_each(answers, earlier, requests[0]["prompt"], heads):
            if pictures is None:
                yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), line
            elif tab == "one":
                yield pictures, _gallery_items(pictures), details(pictures[0]), gr.skip(), gr.skip(), line
            else:
                drawn[number] = pictures
                yield gr.skip(), gr.skip(), gr.skip(), *(_gallery_items(side[::-1]) for side in drawn), line

    def cancel_drawing(self, request: gr.Request):
        self._sessions.cancel(request.session_hash)


def build(engine: EngineProcess, title: str) -> gr.Blocks:
    """The page. title: a line that says what is served."""
    handlers = _Handlers(engine)
    with gr.Blocks(title="Stable Diffusion", analytics_enabled=False) as page:
        pictures_state, models_state, tab = gr.State([]), gr.State({}), gr.State("one")
        with gr.Row(equal_height=False):
            prompt = gr.Textbox(
                label="Prompt", lines=1, max_lines=4, placeholder="what to draw", elem_id="prompt", scale=5,
                min_width=280, autofocus=True,
            )  # fmt: skip
            go = gr.Button("Draw", variant="primary", min_width=110, scale=1, elem_id="draw")
            cancel = gr.Button("Cancel", interactive=False, min_width=110, scale=1)
        line = gr.HTML(status("loading"), elem_id="status")
        examples = gr.Dataset(
            components=[gr.Textbox(visible=False)], samples=[], visible=False, label="Captions of the run's data"
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                with gr.Tab("One checkpoint", id="one") as one:
                    with gr.Row():
                        model, weights = _model_picker("Checkpoint", "Weights")
                    gallery = _gallery("Pictures, the newest first", 4, elem_id="gallery")
                    facts = gr.HTML(elem_id="settings")
                with gr.Tab("Compare two", id="two") as two:
                    with gr.Row():
                        sides = []
                        for side in _SIDES:
                            with gr.Column(min_width=150):
                                picker = _model_picker(side, f"{side}: weights")
                                sides.append((*picker, _gallery(side, 1, elem_id=f"pair-{side}", elem_classes="pair")))
                    gr.Markdown("Both start from the same noise: the checkpoints make the difference.")
            with gr.Column(scale=1, min_width=280):
                negative = gr.Textbox(label="Negative prompt", placeholder="what guidance leads away from")
                with gr.Row():
                    guidance = gr.Number(7.5, label="Guidance scale", info="1 is none", min_width=90)
                    steps = gr.Number(50, label="Steps", info="1 to 999", min_width=90)
                    sampler = gr.Dropdown(_SAMPLERS, label="Sampler", info="auto: as trained", min_width=90)
                with gr.Row():
                    seed = gr.Number(42, label="Seed", info="of the first", min_width=90)
                    count = gr.Number(1, label="Pictures", info="up to 16", min_width=90)
                with gr.Row():
                    width = gr.Number(None, label="Width", info="empty: as trained", min_width=90)
                    height = gr.Number(None, label="Height", info="empty: as trained", min_width=90)
                refresh = gr.Button("Look for new checkpoints", size="sm")
                gr.Markdown(f"Stable Diffusion, {title}")
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        pickers = [(model, weights), *((side[0], side[1]) for side in sides)]
        dropdowns = [picker[0] for picker in pickers]
        listed = [models_state, *dropdowns, line]
        page.load(handlers.list_models, dropdowns, listed, concurrency_id="list", **quiet).then(
            handlers.list_examples, None, examples, concurrency_id="list", **quiet
        )
        refresh.click(handlers.list_models, dropdowns, listed, concurrency_id="list", **quiet)
        for dropdown, radio in pickers:
            dropdown.change(_offer_weights, [models_state, dropdown, radio], radio, queue=False, **quiet)
        model.change(_trained_size, [models_state, model], [width, height], queue=False, **quiet)
        one.select(lambda: "one", None, tab, queue=False, **quiet)
        two.select(lambda: "two", None, tab, queue=False, **quiet)
        examples.click(lambda sample: sample[0], examples, prompt, queue=False, **quiet)
        inputs = [tab, pictures_state, *(part for picker in pickers for part in picker)]
        inputs += [prompt, negative, guidance, steps, seed, count, width, height, sampler]
        outputs = [pictures_state, gallery, facts, sides[0][2], sides[1][2], line]
        gr.on([go.click, prompt.submit], handlers.begin, None, [line, go, cancel], queue=False, **quiet).then(
            handlers.draw, inputs, outputs, concurrency_id="draw", concurrency_limit=1, **quiet
        ).then(_end, None, [go, cancel], queue=False, **quiet)
        gallery.select(_choose, pictures_state, facts, queue=False, **quiet)
        cancel.click(handlers.cancel_drawing, queue=False, **quiet)
        page.unload(handlers.cancel_drawing)
    return page


def main() -> None:
    """Serve the page until Ctrl-C or SIGTERM. sys.argv[1]: the configuration from app.py, JSON."""
    config = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    engine = EngineProcess(config["engine"])
    engine.start()
    try:
        page = build(engine, config["title"]).queue(max_size=32)
        try:
            page.launch(
                server_name=config["host"], server_port=config["port"], share=False, ssr_mode=False, mcp_server=False,
                quiet=True, show_error=True, footer_links=[], allowed_paths=[config["output"]],
                prevent_thread_lock=True, theme=_THEME, css=_CSS, enable_monitoring=False, run_history=False,
            )  # fmt: skip
        except (OSError, ValueError):  # its messages name settings of Gradio's that are not ours
            raise InputError(f"--port {config['port']} at {config['host']} cannot be used; choose another") from None
        print(f"web page: {page.local_url} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    finally:
        engine.stop()
        shutil.rmtree(_HERE, ignore_errors=True)


if __name__ == "__main__":
    run_script(main)

"""The drawing side of the web page: a process of its own that takes requests as JSON, one a line, and answers likewise.

It is apart from the page because the page's library and Paddle's need packages that exclude each other. So the page
lives on where drawing runs out of memory, and a picture that is drawn does not keep the page from listing checkpoints.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sd import devices, runtime
from sd.data.streaming.captions import sample_captions
from sd.data.streaming.catalog import Catalog
from sd.errors import ArgumentError, InputError, RunError, last_line
from sd.logs import import_quietly, set_up_logging
from sd.runs.locate import find_unet, list_choices, run_settings
from sd.web.options import Request, ServeOptions

if TYPE_CHECKING:
    from sd.sampling.models import Models

MAX_EXAMPLES = 4
# What the page calls the arguments that a message may name.
FIELDS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "guidance_scale": "Guidance scale",
    "num_inference_steps": "Steps",
    "scheduler": "Sampler",
    "seed": "Seed",
    "num_images": "Pictures",
    "height": "Height",
    "width": "Width",
    "weights": "Weights",
}
_PROGRESS_INTERVAL_SECONDS = 0.25  # a browser shows no more, and what it is slow to show would come late


class CancelledError(Exception):
    """The job was cancelled."""


class Engine:
    """Draws what is asked for, with one UNet in memory at a time."""

    def __init__(self, config: ServeOptions):
        self._config = config
        self._models: Models | None = None
        self._loaded: tuple[str, str] | None = None  # label and weights of the models
        self._weights_id = ""
        self._captions_of: str | None = None
        self._captions: list[str] = []

    def choices(self) -> dict[str, str]:
        """{label: name} of the checkpoints that are there now."""
        return list_choices(self._config.checkpoint, self._config.output_dir)

    def describe(self) -> dict[str, dict]:
        """label -> {`side`: pixels of its training images or None, `weights`: those it has of raw and ema}."""
        return {label: model_info(name) for label, name in self.choices().items()}

    def examples(self) -> list[str]:
        """A few captions of the data that the newest checkpoint was trained on; none if it cannot be read."""
        names = [find_unet(name).checkpoint for name in self.choices().values()]
        file_list = run_settings(next(filter(None, names), None)).get("file_list")
        if file_list and self._captions_of != file_list:
            self._captions_of, self._captions = file_list, read_captions(file_list, MAX_EXAMPLES)
        return self._captions

    def draw(self, request: dict[str, Any], notify: Callable[..., None]) -> None:
        """Draw a request's pictures, batch by batch.

        request: the fields of a Request.
        notify(**news): called with note=text, progress=(pictures, of how many), picture=path and settings=dict, and
        after every other step without news. What it raises ends the drawing; finished pictures stay.
        Raises InputError or RunError for the rest.
        """
        from sd.sampling.files import read_png_text
        from sd.sampling.job import draw, settings_from, warn_truncated_prompts

        options = Request(**request)
        models, device = self._load(options.model, options.weights, notify)
        settings = settings_from(options, models, device)
        warn_truncated_prompts(models.tokenizer, [options.prompt], lambda text: notify(note=text))
        jobs = self._jobs(options, settings)
        done, notified_at = 0.0, 0.0

        def step(share):
            nonlocal done, notified_at
            done += share
            if time.monotonic() - notified_at < _PROGRESS_INTERVAL_SECONDS:
                notify()
            else:
                notified_at = time.monotonic()
                notify(progress=(round(done, 3), len(jobs)))

        for start in range(0, len(jobs), settings.batch_size):
            batch = jobs[start : start + settings.batch_size]
            draw(models, batch, settings, self._weights_id, quiet=True, on_step=step)
            done = float(start + len(batch))
            for job in batch:
                notify(picture=str(job.path.absolute()), settings=read_png_text(job.path)[1])

    def _load(self, label, weights, notify):
        """(models, kind of device). Only the last models asked for stay, and the old UNet goes before the new comes."""
        from sd.sampling.models import load_models

        choices = self.choices()
        if label not in choices:
            raise InputError(f"{label or 'no checkpoint'} is not there; there are {', '.join(choices) or 'none yet'}")
        config = self._config
        device = devices.select(config.device, config.dtype).kind
        key = (label, weights)
        if self._models is None or self._loaded != key or self._models.is_stale():
            notify(note=f"loading {label} {weights}")
            self._loaded = None
            if self._models:
                self._models.unet, self._models.sources["unet"] = None, None
            self._models = models = load_models(
                choices[label],
                **config.models,
                dtype=config.dtype,
                variant=None if weights == "raw" else weights,
                shared=self._models,
            )
            self._weights_id = models.weights_id()
            self._loaded = key
        return self._models, device

    def _jobs(self, options, settings):
        """Files named by what is drawn: the same request again finds its pictures, another one never their names."""
        from sd.sampling.files import make_folder, slug
        from sd.sampling.job import Job

        folder = make_folder(self._config.output)
        identity = f"{options.prompt}\n{settings}\n{self._weights_id}"
        name = f"{slug(options.prompt)}-{xxhash.xxh3_64_hexdigest(identity.encode())[:10]}"
        seeds = range(options.seed, options.seed + options.num_images)
        return [Job(options.prompt, seed, folder / f"{name}-{seed}.png") for seed in seeds]


def model_info(name: str) -> dict:
    """What is known of a UNet (see `find_unet`) without loading it: `side` in pixels or None, and its `weights`."""
    location = find_unet(name)
    averages = [*Path(location.folder).glob("*.ema.safetensors")]
    weights = ["raw", "ema"] if averages else ["raw"]
    return {"side": run_settings(location.checkpoint).get("resolution"), "weights": weights}


def read_captions(file_list: str, limit: int) -> list[str]:
    """Up to `limit` different captions of rows spread over a file list; none of one that cannot be read."""
    with suppress(InputError, RunError, OSError):
        captions = sample_captions(Catalog(file_list, 1, max_bad_fraction=1.0), 4 * limit)
        return [text for text in dict.fromkeys(captions) if text.strip()][:limit]
    return []


class Server:
    """Requests in, answers out, by job number: a drawing in its turn, listing and cancelling at once.

    Requests: `{"do": "draw", "job": N, ...}` (see `Engine.draw`), `{"do": "list", "job": N}` (`Engine.describe`),
    `{"do": "examples", "job": N}`, `{"do": "cancel", "job": N}`. answer(dict) sends one answer; the last one of a job
    has `end`: `done`, `cancelled`, or `error` with its `message`.
    """

    def __init__(self, engine: Engine, answer: Callable[[dict[str, Any]], None]):
        self._engine, self._answer = engine, answer
        self._jobs, self._cancelled = queue.Queue(), set()

    def listen(self, lines: Iterable[str], at_end: Callable[[], None]) -> None:
        """Read requests until they end; `work` draws what is queued meanwhile, in another thread."""
        for line in lines:
            request = json.loads(line)
            job = request.pop("job")
            match request.pop("do"):
                case "draw":
                    self._jobs.put((job, request))
                case "cancel":
                    self._cancelled.add(job)
                case "list":
                    self._do(job, partial(self._list, job))
                case "examples":
                    self._do(job, partial(self._examples, job))
        self._jobs.put(None)
        at_end()

    def work(self) -> None:
        """Draw until there are no more requests."""
        while (item := self._jobs.get()) is not None:
            job, request = item
            self._do(job, partial(self._engine.draw, request, partial(self._notify, job)))
            self._cancelled.discard(job)

    def _list(self, job):
        self._answer({"job": job, "choices": self._engine.describe()})

    def _examples(self, job):
        self._answer({"job": job, "examples": self._engine.examples()})

    def _notify(self, job, **news):
        if job in self._cancelled:
            raise CancelledError
        if news:
            self._answer({"job": job, **news})

    def _do(self, job, act):
        try:
            act()
            end = {"end": "done"}
        except CancelledError:
            end = {"end": "cancelled"}
        except ArgumentError as error:
            end = {"end": "error", "message": error.named(FIELDS.get(error.name, error.name))}
        except (InputError, RunError) as error:
            end = {"end": "error", "message": str(error)}
        except Exception as error:  # whatever Paddle raises: the person reads a line, the terminal has the rest
            traceback.print_exc()
            end = {"end": "error", "message": f"drawing failed ({type(error).__name__}: {last_line(error)})"}
        self._answer({"job": job, **end})


def main() -> None:
    """Serve standard input; answers go to standard output, which everything else is kept away from."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the page too, which closes our input
    lock = threading.Lock()

    def answer(value):
        with lock, suppress(BrokenPipeError):  # a page that is gone is noticed by `listen`
            print(json.dumps(value), file=answers, flush=True)

    config = ServeOptions(**json.loads(sys.argv[1]))
    server = Server(Engine(config), answer)
    threading.Thread(target=server.listen, args=(sys.stdin, lambda: os._exit(0)), daemon=True).start()
    runtime.prepare(config.device)
    set_up_logging()
    import_quietly()
    server.work()


if __name__ == "__main__":
    main()

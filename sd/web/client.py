"""The page's client of the drawing process `sd.web.engine`: requests, answers, status lines.

Standard library only: it runs in the page's environment, which has no Paddle.
"""

import html
import itertools
import json
import queue
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_MAX_PICTURES = 100


class EngineProcess:
    """The drawing process, started on first use, and its answers sorted by job. command: what starts it."""

    def __init__(self, command: Sequence[str]):
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._waiting = {}  # job -> (the process that has the request, queue of its answers)
        self._numbers, self._lock = itertools.count(1), threading.Lock()

    def start(self) -> None:
        """Have the engine running; it loads its libraries while people type."""
        with self._lock:
            self._running()

    def new_job(self) -> int:
        """A number for a request that is yet to be made."""
        return next(self._numbers)

    def submit(self, job: int, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request and yield its answers, dicts, the last of which has `end`."""
        answers = queue.SimpleQueue()
        with self._lock:
            process = self._running()
            self._waiting[job] = process, answers
        try:
            self._send(process, {"job": job, **request})
            answer = {}
            while "end" not in answer:
                answer = answers.get()
                yield answer
        finally:
            with self._lock:
                del self._waiting[job]

    def cancel(self, job: int) -> None:
        """Cancel a job; its finished pictures stay."""
        if waiting := self._waiting.get(job):
            self._send(waiting[0], {"do": "cancel", "job": job})

    def stop(self) -> None:
        """End the engine's process."""
        with self._lock:
            process, self._process = self._process, None
        if process and process.stdin:
            process.stdin.close()
            process.wait()

    def _running(self):
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self._process

    def _send(self, process, value):
        with self._lock, suppress(OSError, ValueError):  # the process has died, which `_listen` reports
            process.stdin.write(json.dumps(value) + "\n")
            process.stdin.flush()

    def _listen(self, process):
        for line in process.stdout:
            answer = json.loads(line)
            if waiting := self._waiting.get(answer["job"]):
                waiting[1].put(answer)
        died = {"end": "error", "message": _exit_message(process.wait())}
        with self._lock:
            self._process = None if self._process is process else self._process
            for waiting, answers in self._waiting.values():
                if waiting is process:
                    answers.put(died)


def _exit_message(code):
    cause = "most likely out of memory" if code == -signal.SIGKILL else "the terminal says why"
    return (
        f"the drawing process ended (exit code {code}), {cause}; a smaller size may help, the next picture restarts it"
    )


class PageSessions:
    """The job of each open page, which it alone can cancel, also while the job is queued."""

    def __init__(self, drawer: EngineProcess):
        self._drawer, self._jobs, self._cancelled = drawer, {}, set()

    def expect(self, session: str) -> None:
        """Reserve a job number for a page that is about to draw."""
        self._jobs[session] = self._drawer.new_job()

    def cancel(self, session: str) -> None:
        """Cancel the job of a page."""
        if job := self._jobs.get(session):
            self._cancelled.add(job)
            self._drawer.cancel(job)

    def draw_each(self, session: str, requests: list[dict]) -> Iterator[tuple[int, dict]]:
        """Yield (number of the request, answer) of requests that are drawn one after another, until one is not done."""
        for number, request in enumerate(requests):
            end: str | None = "error"
            for answer in self.draw(session, request):
                end = answer.get("end")
                yield number, answer
            if end != "done":
                return
            if number + 1 < len(requests):
                self.expect(session)

    def draw(self, session: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the answers to a page's request."""
        job = self._jobs.get(session) or self._drawer.new_job()
        try:
            if job in self._cancelled:
                yield {"end": "cancelled"}
                return
            yield from self._drawer.submit(job, {"do": "draw", **request})
        finally:
            self._cancelled.discard(job)
            self._jobs.pop(session, None)


def caption(picture: dict[str, Any]) -> str:
    """What stands below a picture of `follow`."""
    settings = picture["settings"]
    words = [
        f"{picture['prompt']} (seed {settings['seed']})",
        f"{settings['model']}, guidance {settings['guidance_scale']:g}",
        f"{settings['num_inference_steps']} steps {settings['scheduler']}, {settings['width']} x {settings['height']}",
    ]
    if settings["negative_prompt"]:
        words.append(f"without {settings['negative_prompt']!r}")
    return " · ".join(words)


def details(picture: dict) -> str:
    """All that is known of a picture, as an HTML table."""
    facts = {"file": Path(picture["path"]).name, "prompt": picture["prompt"], **picture["settings"]}
    cells = ((html.escape(name), html.escape(str(value))) for name, value in facts.items())
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in cells)
    return f"<table><caption>Settings of the newest picture, or of the one clicked on</caption>{rows}</table>"


def status(text: str, kind: str = "info") -> str:
    """A line for the person; what they typed may be part of it."""
    return f'<p class="sd-{kind}" role="{"alert" if kind == "error" else "status"}">{html.escape(text)}</p>'


def follow_each(
    answers: Iterable[tuple[int, dict]], gallery: list[dict], prompt: str, heads: Sequence[str]
) -> Iterator[tuple[int, list[dict] | None, str]]:
    """(number of the request, and what `follow` gives for it) of the answers of `PageSessions.draw_each`.

    heads: of each request what its status lines begin with.
    """
    for number, group in itertools.groupby(answers, key=lambda numbered: numbered[0]):
        for pictures, line in follow((answer for _, answer in group), gallery, prompt, heads[number]):
            yield number, pictures, line


def follow(
    answers: Iterable[dict], gallery: list[dict], prompt: str, head: str = ""
) -> Iterator[tuple[list[dict] | None, str]]:
    """The answers to a request -> (pictures to be shown or None if they are as before, status line), as they come.

    gallery: the earlier pictures, dicts of path, prompt and settings, the newest first; new ones come before them.
    head: what the status lines begin with.
    """
    drawn, notes = 0, []

    def line(*words):
        return status(head + "; ".join([*notes, *words]))

    for answer in answers:
        if "note" in answer:
            notes = [note for note in notes if not note.startswith("loading ")] + [answer["note"]]
            yield None, line()
        elif "progress" in answer:
            done, total = answer["progress"]
            notes = [note for note in notes if not note.startswith("loading ")]
            yield None, line(f"drawing, {done:.1f} of {total} pictures")
        elif "picture" in answer:
            notes = [note for note in notes if not note.startswith("loading ")]
            drawn += 1
            new = {"path": answer["picture"], "prompt": prompt, "settings": answer["settings"]}
            gallery = [new, *(old for old in gallery if old["path"] != new["path"])][:_MAX_PICTURES]
            yield gallery, line(f"{drawn} drawn")
        elif answer["end"] == "error":
            yield None, status(head + answer["message"], "error")
        else:
            count = f"{drawn} picture{'' if drawn == 1 else 's'} drawn"
            yield None, line(count if answer["end"] == "done" else f"cancelled, {count} and kept")

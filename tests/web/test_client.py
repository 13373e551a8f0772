"""The page's side without a browser: answers of the process that draws, sessions in turns, lines and captions."""

import re
import sys
import threading

import pytest

from sd.web.client import EngineProcess, PageSessions, caption, details, follow, follow_each, status

ENGINE = """
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "cancel": continue
    if request.get("prompt") == "die": os.kill(os.getpid(), 9)
    print(json.dumps({"job": request["job"], "note": request.get("prompt")}), flush=True)
    print(json.dumps({"job": request["job"], "end": "done"}), flush=True)
"""


@pytest.fixture
def engine():
    engine = EngineProcess([sys.executable, "-c", ENGINE])
    yield engine
    engine.stop()


def test_a_dead_engine_is_reported_and_restarted(engine):
    for _ in range(3):
        died = list(engine.submit(engine.new_job(), {"do": "draw", "prompt": "die"}))
        assert len(died) == 1 and "exit code -9), most likely out of memory" in died[0]["message"]
        assert [a.get("note") for a in engine.submit(engine.new_job(), {"do": "draw", "prompt": "a"})] == ["a", None]
    process = engine._process
    engine.stop()
    assert process.poll() == 0


def test_many_pages_get_their_own_answers(engine):
    actual = {}

    def ask(number):
        actual[number] = [a.get("note") for a in engine.submit(engine.new_job(), {"do": "draw", "prompt": str(number)})]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert actual == {number: [str(number), None] for number in range(20)} and engine._waiting == {}


def test_a_page_cancels_its_own_drawing_even_before_its_turn(engine):
    sessions = PageSessions(engine)
    sessions.expect("one")
    sessions.expect("two")
    sessions.cancel("one")
    sessions.cancel("nobody")
    assert list(sessions.draw("one", {"prompt": "a"})) == [{"end": "cancelled"}]
    assert list(sessions.draw("two", {"prompt": "a"}))[-1]["end"] == "done"
    sessions.cancel("one")  # nothing is waited for: the next one is not touched
    sessions.expect("one")
    assert list(sessions.draw("one", {"prompt": "a"}))[-1]["end"] == "done"


def test_answers_become_pictures_and_a_line():
    settings = {"model": "checkpoint-5", "seed": 3, "guidance_scale": 2.0, "num_inference_steps": 9, "width": 24,
                "height": 32, "scheduler": "ddim", "negative_prompt": "blue"}  # fmt: skip
    answers = [{"note": "loading x"}, {"note": "cut off: '<b>'"}, {"progress": [0.5, 1]},
               {"picture": "/p/new.png", "settings": settings}, {"end": "done"}]  # fmt: skip
    shown = [{"path": "/p/old.png"}, {"path": "/p/new.png"}]
    states = list(follow(answers, shown, "red"))
    assert [None if pictures is None else [p["path"] for p in pictures] for pictures, _ in states] == [
        None, None, None, ["/p/new.png", "/p/old.png"], None,
    ]  # fmt: skip
    assert "loading x" in states[0][1] and "&lt;b&gt;" in states[1][1] and "0.5 of 1 pictures" in states[2][1]
    assert states[4][1] == status("cut off: '<b>'; 1 picture drawn")
    reported = caption(states[3][0][0])
    assert reported == "red (seed 3) · checkpoint-5, guidance 2 · 9 steps ddim, 24 x 32 · without 'blue'"
    cells = re.findall(r"<th[^>]*>(.*?)</th><td>(.*?)</td>", details(states[3][0][0] | {"prompt": "<b>"}))
    assert dict(cells) == {"file": "new.png", "prompt": "&lt;b&gt;"} | {
        name: str(reported) for name, reported in settings.items()
    }
    assert list(follow([{"end": "error", "message": "seed=-1"}], [], "")) == [(None, status("seed=-1", "error"))]
    assert next(follow([{"end": "cancelled"}], [], ""))[1] == status("cancelled, 0 pictures drawn and kept")


def test_two_requests_are_followed_side_by_side_until_one_ends_badly(engine):
    sessions = PageSessions(engine)
    sessions.expect("page")
    numbered = list(sessions.draw_each("page", [{"prompt": "first"}, {"prompt": "second"}]))
    assert [(number, answer.get("note", answer.get("end"))) for number, answer in numbered] == [
        (0, "first"), (0, "done"), (1, "second"), (1, "done"),
    ]  # fmt: skip
    lines = [line for _, _, line in follow_each(numbered, [], "x", ["A: ", "B: "])]
    assert lines[0] == status("A: first") and lines[3] == status("B: second; 0 pictures drawn")
    sessions.expect("page")
    assert {number for number, _ in sessions.draw_each("page", [{"prompt": "die"}, {"prompt": "second"}])} == {0}

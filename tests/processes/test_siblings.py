"""The watcher beside a rank: who died is named, even if that was before the watcher began."""

import subprocess
import sys

from sd.processes import siblings


def watcher(own, other):
    command = [sys.executable, "-I", "-S", siblings.__file__, str(own.pid), f"1:{other.pid}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sleeper(seconds):
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])


def ended():
    process = sleeper(0)
    process.wait()  # reaped: its number belongs to nobody
    return process


def test_a_sibling_that_died_before_the_watch_is_named():
    own, dead = sleeper(2), ended()
    told = watcher(own, dead).communicate(timeout=20)[1]
    assert told == f"error: rank 1 (process {dead.pid}) died; the last lines of its log may say why\n"
    own.wait()


def test_a_sibling_that_dies_later_is_named_and_a_finished_rank_is_not_watched():
    own, other = sleeper(60), sleeper(60)
    told = watcher(own, other)
    other.kill()
    own_watch = watcher(own, other)
    assert own_watch.communicate("done", timeout=20)[1] == ""
    assert told.stderr.readline().startswith(f"error: rank 1 (process {other.pid}) died")
    other.wait()
    own.kill()
    assert told.wait(20) == 0 and own.wait() == -9


def test_a_rank_that_is_gone_needs_no_watch():
    other = sleeper(60)
    assert watcher(ended(), other).communicate(timeout=20)[1] == ""
    other.kill()
    other.wait()

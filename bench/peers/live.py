"""Engines that stay: a process that is loaded once, does what it is told, and is held still between its turns."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class Refused(Exception):
    """The engine does not do this job; the text says why."""


class Missing(Exception):
    """The engine, or a file, is not here."""


class Failed(Exception):
    """Something broke."""


def start(command: list[str], cores: list[int] | None, boost: bool, **more) -> subprocess.Popen:
    """A session of its own, so that all of it can be held and ended, and scheduled as one."""

    def prepare() -> None:
        if cores:
            os.sched_setaffinity(0, cores)
        if boost:
            Path("/proc/self/autogroup").write_text("-20")

    return subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **more)


def end(process: subprocess.Popen) -> None:
    """Ends a command and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command: list[str], boost: bool, timeout_s: float) -> str:
    """What a command prints."""
    process = start(command, None, boost, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {timeout_s:.0f} s") from None
    finally:
        end(process)
    if process.returncode != 0:
        raise ending(command, process.returncode, errors)
    return out


def ending(command: list[str], code: int, errors: str) -> Exception:
    """Why a command ended: Margay says with 1 that it does not take a file."""
    lines = [line for line in errors.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no message"
    if code == 1 and Path(command[0]).name.startswith("margay"):
        return Refused(last.removeprefix("margay: error: "))
    return Failed(f"ended by {signal.Signals(-code).name}: {last}" if code < 0 else last)


class Live:
    """Orders go in as lines of JSON, an answer comes back for each. Between them nothing of it runs."""

    def __init__(self, command: list[str], cores: list[int] | None, boost: bool, timeout_s: float):
        self.command, self.timeout_s = command, timeout_s
        self.errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = start(command, cores, boost, bufsize=0, **pipes)
        self.rest = b""

    def ask(self, order: dict) -> dict:
        """The answer; the first one comes once the engine is loaded."""
        self.send(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(order).encode() + b"\n")
            answer = json.loads(self.line())
        finally:
            self.send(signal.SIGSTOP)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    def line(self) -> bytes:
        until = time.monotonic() + self.timeout_s
        while b"\n" not in self.rest:
            if not select.select([self.process.stdout], [], [], max(until - time.monotonic(), 0))[0]:
                raise Failed(f"not done after {self.timeout_s:.0f} s")
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                self.process.wait()
                self.errors.seek(0)
                raise ending(self.command, self.process.returncode, self.errors.read())
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def send(self, what: signal.Signals) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, what)

    def close(self) -> None:
        end(self.process)
        self.errors.close()


@contextlib.contextmanager
def busy(core: int, boost: bool) -> Iterator[None]:
    """A loop on one core, with the weight that the timed command has."""
    process = start([sys.executable, "-c", "while True: pass"], [core], boost)
    time.sleep(0.2)
    try:
        yield
    finally:
        end(process)


def serve(do: dict[str, Callable[..., dict]]) -> None:
    """The other side: orders from stdin until it ends. `Refused` is told, not raised."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = do[order.pop("do")](**order)
        except Refused as e:
            answer = {"refused": str(e)}
        print(json.dumps(answer), flush=True)

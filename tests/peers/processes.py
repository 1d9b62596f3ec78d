"""Starting, watching and ending what is measured, and asking it over HTTP."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 180


class Process:
    """A process with a log, ended with all that it started."""

    def __init__(self, name: str, command: list[str], folder: Path, **environment: str):
        self.log = folder / f"{name}.log"
        self.name = name
        with self.log.open("ab") as log:
            self.inner = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                          env={**os.environ, **environment})

    def until(self, good, what: str) -> float:
        """Seconds until `good()` is true."""
        began = time.perf_counter()
        while not good():
            if self.inner.poll() is not None:
                raise SystemExit(f"{self.name} ended with {self.inner.returncode}; see {self.log}")
            if time.perf_counter() - began > PATIENCE_S:
                raise SystemExit(f"{self.name}: not {what} after {PATIENCE_S} s; see {self.log}")
            time.sleep(0.02)
        return time.perf_counter() - began

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        try:
            os.killpg(self.inner.pid, how)
        except ProcessLookupError:
            pass
        try:
            self.inner.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.inner.pid, signal.SIGKILL)
            self.inner.wait()


def get(url: str, patience: float = 5) -> bytes | None:
    """The body, or nothing where nobody answers well."""
    try:
        with urllib.request.urlopen(url, timeout=patience) as reply:
            return reply.read()
    except (urllib.error.URLError, OSError):
        return None


def post(url: str, body: dict, patience: float = 120) -> tuple[dict, dict]:
    """Answer and headers, in small letters."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=patience) as reply:
            return json.loads(reply.read()), {name.lower(): value for name, value in reply.getheaders()}
    except urllib.error.HTTPError as error:
        raise OSError(f"{error.code}: {error.read().decode(errors='replace')}") from error


def metric(page: str, name: str) -> float:
    """The sum over all labels; 0 where it was never counted."""
    lines = (line for line in page.splitlines() if line.startswith((name + "{", name + " ")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

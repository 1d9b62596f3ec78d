"""A cluster of real processes on the loopback: members, gateways, workers with the sim engine."""

import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

READY_TIMEOUT_S = 90.0
MODEL = "sim-model"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """Runs until closed; logs stay in its folder until then."""

    def __init__(self, binary: Path, script: Path, gateways: int = 2, workers: int = 3, members: int = 1,
                 engine: str = "sim", settings: str = ""):
        """`settings` are further lines of the engine's table."""
        self.binary = binary
        self.folder = Path(tempfile.mkdtemp(prefix="mainstay-cluster-"))
        self.processes: dict[str, subprocess.Popen] = {}
        try:
            self.start(script, gateways, workers, members, engine, settings)
        except BaseException:
            self.close()
            raise

    def start(self, script: Path, gateways: int, workers: int, members: int, engine: str, settings: str) -> None:
        ports = [free_port() for _ in range(members)]
        listed = ",".join(f"{n + 1}=127.0.0.1:{port}" for n, port in enumerate(ports))
        control = ",".join(f"127.0.0.1:{port}" for port in ports)
        for number, port in enumerate(ports, 1):
            self.spawn(f"m{number}", "control", f"--node-id={number}", f"--listen=127.0.0.1:{port}",
                       f"--members={listed}", f"--data-dir={self.folder}/m{number}")
        models = self.folder / "gateway.toml"
        # Clients have names of models built in.
        models.write_text(f'[models]\naliases = {{ "*" = "{MODEL}" }}\n')
        self.gateways = [("127.0.0.1", free_port()) for _ in range(gateways)]
        for number, (host, port) in enumerate(self.gateways, 1):
            self.spawn(f"g{number}", "gateway", f"--control={control}", f"--listen={host}:{port}", f"--config={models}")
        config = self.folder / "engine.toml"
        config.write_text(f'[engine]\nscript = "{script}"\n{settings}')
        for number in range(1, workers + 1):
            self.spawn(f"w{number}", "worker", f"--control={control}", f"--name=w{number}", f"--engine={engine}",
                       f"--model-name={MODEL}", f"--config={config}")
        self.wait()

    def spawn(self, name: str, *arguments: str) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        self.processes[name] = subprocess.Popen([self.binary, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(self) -> None:
        """Until each process says that it is ready and each gateway knows the model."""
        until = time.monotonic() + READY_TIMEOUT_S
        for name, process in self.processes.items():
            while "ready " not in self.log(name):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{name} is not ready:\n{self.log(name)[-2000:]}")
                time.sleep(0.02)
        for host, port in self.gateways:
            while not self.serves(f"http://{host}:{port}/v1/models/{MODEL}"):
                if time.monotonic() > until:
                    raise RuntimeError(f"the gateway on {port} does not know {MODEL}")
                time.sleep(0.02)

    @staticmethod
    def serves(url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        for left in sorted(self.folder.rglob("*"), reverse=True):
            left.rmdir() if left.is_dir() else left.unlink()
        self.folder.rmdir()

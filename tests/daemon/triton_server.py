"""The real Triton, from the wheel `nvidia-pytriton`, in an environment of its own; x86-64 Linux only.

Its Python backend runs the models of `differential.MODELS`. No container and no GPU.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.daemon.differential_valid import MODELS, Tensor

__all__ = ["ENVIRONMENT", "made_environment", "triton"]

#: The same version as perf_analyzer's, and numpy 1, which its Python backend was built for.
WHEELS = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
ENVIRONMENT = "triton-2.51"
START_S = 120.0

_MODEL = """\
import sys
sys.path.insert(0, {packages!r})
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feed = {{name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in {inputs!r}}}
        outputs = {{name: eval(text, {{}}, feed) for name, text in {expressions!r}.items()}}
        return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()])
"""


def made_environment(cache: Path) -> Path:
    """Return the environment's folder, made the first time (55 MB to fetch, 370 MB on the disk)."""
    folder = cache / ENVIRONMENT
    if (folder / "ready").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*map(str, pip), *WHEELS], check=True)
    (folder / "ready").touch()
    return folder


@contextmanager
def triton(environment: Path, folder: Path) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Run Triton; yield its addresses for HTTP and gRPC.

    Args:
        environment: Its environment.
        folder: An empty folder for its models, backend and log.
    """
    (packages,) = environment.glob("lib/python3*/site-packages")
    home = packages / "pytriton" / "tritonserver"
    _write_models(folder / "models", packages)
    backends = folder / "backends"
    shutil.copytree(home / "backends", backends)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = backends / "python" / "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / python / stub.name, stub)
    stub.chmod(0o755)
    http, grpc = _free_port(), _free_port()
    command = [
        str(home / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--allow-metrics=false", "--exit-timeout-secs=5",
    ]  # fmt: skip
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            command, env={**environ, "LD_LIBRARY_PATH": libraries}, stdout=log, stderr=log, cwd=folder
        )
        try:
            _wait_ready(child, http, folder / "log")
            yield ("127.0.0.1", http), ("127.0.0.1", grpc)
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _write_models(folder: Path, packages: Path) -> None:
    for name, (inputs, outputs, expressions) in MODELS.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        batched = all(tensor.shape[0] == -1 for tensor in (*inputs, *outputs))
        lines = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {1024 if batched else 0}"]
        lines += [_tensor("input", tensor, batched=batched) for tensor in inputs]
        lines += [_tensor("output", tensor, batched=batched) for tensor in outputs]
        (folder / name / "config.pbtxt").write_text("\n".join(lines), encoding="utf-8")
        text = _MODEL.format(
            packages=str(packages), inputs=[tensor.name for tensor in inputs], expressions=expressions
        )
        (version / "model.py").write_text(text, encoding="utf-8")


def _tensor(side: str, tensor: Tensor, *, batched: bool) -> str:
    kind = "STRING" if tensor.wire == "BYTES" else tensor.wire
    dims = list(tensor.shape[1:] if batched else tensor.shape)
    return f'{side} [{{ name: "{tensor.name}" data_type: TYPE_{kind} dims: {dims} }}]'


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        port: int = one.getsockname()[1]
        return port


def _wait_ready(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import http.client

    deadline = time.monotonic() + START_S
    while True:
        assert child.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.2)

"""The daemon's memory, start and idle CPU, over a bare Python that loads the same model.

    python benchmarks/daemon_start.py [BUNDLE] [--runtime R] [--runs 5] [--idle-s 10]

Bare is `python -c` with numpy, the runtime and the model, run once, on one thread. Without BUNDLE it is one of the
small models that the tests carry: what is added shows, and nothing else. Both sides find their bytecode, as pip leaves
it on a device, whatever PYTHONDONTWRITEBYTECODE says here. Budgets: 25 MiB over bare, 1.3 x bare's start, CPU near
zero when idle.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgekit.bundle import open_bundle
from edgekit.choose import choose, installed_runtimes
from edgekit.detect import detect
from edgekit.process import python_command

BARE = {
    "onnxruntime": """
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(PATH, options, providers=["CPUExecutionProvider"])
source = session.get_inputs()[0]
shape = [size if isinstance(size, int) else 1 for size in source.shape]
session.run(None, {source.name: numpy.zeros(shape, numpy.float32)})
""",
    "litert": """
import numpy
from ai_edge_litert.interpreter import Interpreter
session = Interpreter(PATH, num_threads=1)
session.allocate_tensors()
source = session.get_input_details()[0]
session.set_tensor(source["index"], numpy.zeros(source["shape"], numpy.float32))
session.invoke()
""",
}
READY = "print('ready: bare', flush=True)\nimport time\ntime.sleep(600)\n"


@dataclass(frozen=True)
class Seen:
    """What one run showed.

    Attributes:
        start_s: From the start of the process until it was ready.
        memory_mib: Proportional set size when ready.
        idle_share: CPU seconds for each second of idling.
    """

    start_s: float
    memory_mib: float
    idle_share: float


def main() -> None:
    """Run bare and daemon in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--runtime", choices=BARE, default="onnxruntime")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=10.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or small_bundle(Path(folder))
        commands = {
            "bare": bare(bundle, given.runtime),
            "daemon": daemon(bundle, given.runtime, Path(folder)),
        }
        seen: dict[str, list[Seen]] = {name: [] for name in commands}
        compiled = installed_environment(Path(folder) / "bytecode")
        for run in range(given.runs + 1):
            for name, command in commands.items():
                # only the last run idles: the others are about start and memory
                result = watch(command, compiled, given.idle_s if run == given.runs else 0.0)
                if run:  # the first run writes bytecode and warms the page cache
                    seen[name].append(result)
    start = {name: statistics.median(s.start_s for s in runs) for name, runs in seen.items()}
    memory = {name: statistics.median(s.memory_mib for s in runs) for name, runs in seen.items()}
    for name, runs in seen.items():
        print(
            f"{name:<7} start {start[name]:.3f} s, {memory[name]:.1f} MiB, idle {runs[-1].idle_share:.2%} of a core"
        )
    print(
        f"daemon over bare ({given.runtime}): {memory['daemon'] - memory['bare']:+.1f} MiB (budget 25), "
        f"start {start['daemon'] / start['bare']:.2f} x (budget 1.3), load {os.getloadavg()[0]:.1f}"
    )


def bare(bundle: Path, runtime: str) -> list[str]:
    """Return the command that loads the same artifact with the runtime alone."""
    opened = open_bundle(bundle)
    plan = choose(detect().profile(), opened.manifest, installed_runtimes(), runtime=runtime)
    path = str(opened.model_files(plan.artifact).path)
    return python_command("-c", BARE[runtime].replace("PATH", repr(path)) + READY)


def daemon(bundle: Path, runtime: str, folder: Path) -> list[str]:
    """Return the command that serves it."""
    return python_command(
        "-m", "edgekit", "serve", str(bundle), "--http", "127.0.0.1:0", "--runtime", runtime, "--threads", "1",
        "--state-dir", str(folder / "state"),
    )  # fmt: skip


def small_bundle(folder: Path) -> Path:
    """Return a bundle of the tests' classifier: 8 x 8 pixels, four classes."""
    from tests.runtimes.bundles import write_tiny

    return write_tiny(folder / "tiny", ("tflite-fp32", "onnx-fp32")).root


def installed_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which Python keeps bytecode, in `folder`: a device does not compile at every start."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder)}


def watch(command: list[str], environment: dict[str, str], idle_s: float) -> Seen:
    """Start a command, wait until it says that it is ready, let it idle, stop it."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("ready: "):
                break
        else:
            sys.exit(f"{command[:4]} ended before it was ready")
        start_s = time.perf_counter() - began
        memory_mib, used_s = pss_mib(child.pid), cpu_s(child.pid)
        time.sleep(idle_s)
        idle_share = (cpu_s(child.pid) - used_s) / idle_s if idle_s else 0.0
        child.send_signal(signal.SIGTERM)
    return Seen(start_s, memory_mib, idle_share)


def pss_mib(pid: int) -> float:
    """Return a process's proportional set size in MiB: shared pages count by their share."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Pss:\s+(\d+) kB", text, flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

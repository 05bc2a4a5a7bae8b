"""The whole road on this machine: train, convert for three targets, serve, watch, and see the drop arrive.

    make demo

Every step is a command that you can type yourself; each is printed before it runs, with its real output.
What it leaves behind is in demo-out/.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = Path("demo-out")
PYTHON = sys.executable
EDGEKIT = str(Path(PYTHON).with_name("edgekit"))
CLIENT_PYTHON = os.environ.get(
    "EDGEKIT_CLIENTS_PYTHON", str(HERE.parent / ".venv-clients" / "bin" / "python")
)
TARGETS = ("raspberry-pi-4", "jetson", "intel-npu")
WINDOW_S = 3
CLEAN, NOISY = 600, 800


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n## {text}", flush=True)


def show(command: list[str]) -> None:
    """Print a command as a person would type it."""
    words = ["edgekit" if word == EDGEKIT else "python" if word == PYTHON else word for word in command]
    words = [os.path.relpath(w) if w.startswith(str(HERE.parent)) else w for w in words]
    print("$ " + " ".join("<token>" if w.startswith("ek-") or before == "--enroll-token" else w
                          for before, w in zip(["", *words], words, strict=False)), flush=True)  # fmt: skip


def run(*words: str, ok: tuple[int, ...] = (0,)) -> None:
    """Show and run a command; its output goes to the terminal."""
    show(list(words))
    code = subprocess.run(words, check=False).returncode
    if code not in ok:
        sys.exit(f"demo: that command ended with {code}, expected {ok[0]}")


def ask(*words: str) -> Any:
    """Run a command and return the JSON or text that it prints."""
    show(list(words))
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()


@contextmanager
def running(name: str, *words: str) -> Iterator[None]:
    """Show and start a command; stop it by SIGTERM at the end. Its log is demo-out/NAME.log."""
    show([*words, "&"])
    with (OUT / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
            if process.poll() is not None:
                sys.exit(f"demo: {name} ended with {process.returncode}; see {OUT / name}.log")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def get(url: str) -> Any:
    """Return the JSON behind a URL."""
    with urllib.request.urlopen(url, timeout=5) as reply:
        return json.load(reply)


def wait_for(url: str, seconds: float = 60.0) -> None:
    """Wait until a URL answers 200."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"demo: {url} did not answer within {seconds:g} s; see the logs in {OUT}")
            time.sleep(0.1)


def free_port() -> int:
    """Return a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stream(url: str, data: Path, count: int) -> dict[str, Any]:
    """Send digits with Triton's client."""
    words = [CLIENT_PYTHON, str(HERE / "client.py"), url, "digits", str(data), "--count", str(count)]
    show(words)
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    print("  " + text.strip(), flush=True)
    result: dict[str, Any] = json.loads(text)
    return result


def await_server(sync: str, alarm: bool, seconds: float = 30.0) -> dict[str, Any]:
    """Wait until the sync server shows the device with, or without, an alarm; return what it shows."""
    deadline = time.monotonic() + seconds
    while True:
        for device in get(f"{sync}/api/v1/devices")["devices"]:
            shown = [m for m in device["models"] if m["accuracy"] is not None]
            if shown and any(m["alarm"] for m in shown) == alarm:
                return {"device": device["id"], "state": device["state"], **shown[0]}
        if time.monotonic() > deadline:
            sys.exit(f"demo: the sync server shows no {'alarm' if alarm else 'window'} after {seconds:g} s")
        time.sleep(0.3)


def tell(shown: dict[str, Any]) -> None:
    """Print what the server knows of the device."""
    accuracy = shown["accuracy"]
    print(
        f"  the sync server shows: state {shown['state']}, p50 {shown['p50_s'] * 1e3:.3f} ms, estimated accuracy "
        f"{accuracy['estimate']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] on {accuracy['n']} unlabelled "
        f"answers",
        flush=True,
    )


def convert_all(model: Path) -> None:
    """Make the three bundles."""
    for target in TARGETS:
        run(
            EDGEKIT, "convert", str(model / "digits.keras"), "--target", target, "-o", str(OUT / f"digits-{target}"),
            "--calibration", str(model / "calibration.npz"), "--eval", str(model / "eval.npz"),
            "--labels", str(model / "labels.txt"),
        )  # fmt: skip


def watch(model: Path, bundle: Path) -> str:
    """Serve, stream clean digits, then noisy ones, until the server shows the drop; return the page's URL."""
    http, sync_port = free_port(), free_port()
    sync = f"http://127.0.0.1:{sync_port}"
    db = f"sqlite:///{(OUT / 'sync.sqlite').resolve()}"
    state = str(OUT / "device")
    with running("sync", EDGEKIT, "sync", "serve", "--db", db, "--listen", f"127.0.0.1:{sync_port}"):
        wait_for(f"{sync}/api/v1/devices")
        token = ask(EDGEKIT, "fleet", "enroll", "--db", db, "--json")["token"]
        with (
            running("serve", EDGEKIT, "serve", str(bundle), "--http", f"127.0.0.1:{http}", "--state-dir", state,
                    "--window", str(WINDOW_S)),
            running("agent", EDGEKIT, "agent", "--sync", sync, "--enroll-token", token, "--state-dir", state,
                    "--interval", "1"),
        ):  # fmt: skip
            wait_for(f"http://127.0.0.1:{http}/v2/health/ready")
            print("  " + (OUT / "serve.log").read_text().strip().replace("\n", "\n  "), flush=True)
            say("Clean digits, sent by the unmodified tritonclient")
            stream(f"127.0.0.1:{http}", model / "eval.npz", CLEAN)
            tell(await_server(sync, alarm=False))
            say("The same digits under sensor noise: nobody tells EdgeKit the labels")
            stream(f"127.0.0.1:{http}", model / "noisy.npz", NOISY)
            shown = await_server(sync, alarm=True)
            tell(shown)
            for event in get(f"{sync}/api/v1/events")["events"]:
                if event["kind"] == "alarm":
                    print(f"  event: {event['text']}", flush=True)
            page = f"{sync}/devices/{shown['device']}"
            run(PYTHON, str(HERE / "screenshot.py"), page, str(OUT / "device.png"), ok=(0, 5))
            return page


def main() -> None:
    """Run every step."""
    if OUT.exists():
        shutil.rmtree(OUT)
    OUT.mkdir()
    started = time.monotonic()
    model = OUT / "model"
    say("1. Train the reference CNN on 4,000 real digits")
    run(PYTHON, str(HERE / "train_cnn.py"), str(model))
    say("2. Convert it for three targets")
    convert_all(model)
    bundle = OUT / "digits-raspberry-pi-4"
    say("3. Prove the bundle and measure it on this machine")
    run(EDGEKIT, "verify", str(bundle))
    run(EDGEKIT, "profile", str(bundle), "--seconds", "1")
    say("4. Serve it, report to a sync server, watch it")
    page = watch(model, bundle)
    say(f"Done in {time.monotonic() - started:.0f} s")
    picture = OUT / "device.png"
    print(f"bundle:          {bundle}")
    print(f"report:          {bundle}.report/report.html")
    print(f"device page:     {picture if picture.exists() else 'no Chromium here, so no picture of ' + page}")
    print(f"logs:            {OUT}/sync.log, serve.log, agent.log")


if __name__ == "__main__":
    main()

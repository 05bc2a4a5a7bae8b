from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgekit.monitor.outbox import ROW_OVERHEAD, Outbox
from edgekit.monitor.schema import Event, WindowReport
from edgekit.process import python_command

pytestmark = pytest.mark.device

BASE = WindowReport(
    boot="b",
    seq=1,
    model="digits",
    version=1,
    digest="d",
    artifact="onnx-fp32",
    runtime="null",
    device="x86-64",
    start_unix_s=1.0,
    duration_s=60.0,
    n=1,
)


def report(seq: int, boot: str = "b", model: str = "digits") -> WindowReport:
    return msgspec.structs.replace(BASE, boot=boot, seq=seq, model=model)


def size(*reports: WindowReport) -> int:
    return sum(len(msgspec.json.encode(r)) + ROW_OVERHEAD for r in reports)


def keys(outbox: Outbox, limit: int = 10_000) -> list[tuple[str, int]]:
    return [(boot, seq) for boot, seq, _ in outbox.read(limit, 1 << 30)]


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.sqlite"


@pytest.fixture(name="outbox")
def _outbox(path: Path) -> Iterator[Outbox]:
    with Outbox(path, boot="b", wall=lambda: 77.0) as outbox:
        yield outbox


def test_reports_come_out_as_they_went_in(outbox: Outbox) -> None:
    assert outbox.append(report(1), report(2))
    assert outbox.append(report(3))
    assert [(boot, seq) for boot, seq, _ in outbox.read()] == [("b", 1), ("b", 2), ("b", 3)]
    assert msgspec.json.decode(outbox.read()[1][2], type=WindowReport) == report(2)
    assert outbox.depth() == (3, size(report(1), report(2), report(3)))
    assert outbox.lost() == 0
    assert outbox.take_events() == ()


def test_the_sequence_counts_from_one_within_the_boot(outbox: Outbox) -> None:
    assert [outbox.next_seq() for _ in range(3)] == [1, 2, 3]
    assert outbox.boot == "b"


def test_a_boot_is_random_unless_given(path: Path) -> None:
    with Outbox(path) as one, Outbox(path) as two:
        assert len(one.boot) == 32
        assert one.boot != two.boot


def test_what_is_acknowledged_is_gone_and_the_rest_stays(outbox: Outbox) -> None:
    outbox.append(*[report(k) for k in range(1, 6)])
    assert outbox.acknowledge([("b", 2), ("b", 4), ("b", 99), ("x", 1)]) == 2
    assert keys(outbox) == [("b", 1), ("b", 3), ("b", 5)]
    assert outbox.depth() == (3, size(report(1), report(3), report(5)))
    assert outbox.acknowledge([("b", 2)]) == 0
    assert outbox.acknowledge([]) == 0
    assert outbox.lost() == 0


def test_reading_is_limited_by_number_and_by_bytes(outbox: Outbox) -> None:
    outbox.append(*[report(k) for k in range(1, 6)])
    body = len(msgspec.json.encode(report(1)))
    assert len(outbox.read(limit_windows=2)) == 2
    assert len(outbox.read(limit_bytes=3 * body)) == 3
    assert len(outbox.read(limit_bytes=3 * body - 1)) == 2
    assert len(outbox.read(limit_bytes=1)) == 1  # or nothing would ever be sent


def test_beyond_the_quota_the_oldest_go_and_are_counted(path: Path) -> None:
    three = size(report(1), report(2), report(3))
    with Outbox(path, quota_bytes=three) as outbox:
        outbox.append(report(1), report(2), report(3))
        assert (outbox.depth(), outbox.lost()) == ((3, three), 0)
        outbox.append(report(4), report(5))
        assert keys(outbox) == [("b", 3), ("b", 4), ("b", 5)]
        assert (outbox.depth(), outbox.lost()) == ((3, three), 2)
        outbox.append(*[report(k) for k in range(10, 15)])
        assert (outbox.depth()[0], outbox.lost()) == (2, 7 + 1)  # two-digit numbers: one byte more each
    with Outbox(path) as again:
        assert again.lost() == 8


def test_a_report_larger_than_the_quota_takes_nothing_else_with_it(path: Path) -> None:
    large = report(2, model="m" * 500)
    with Outbox(path, quota_bytes=size(large) - 1) as outbox:
        outbox.append(report(1))
        outbox.append(large)
        assert (keys(outbox), outbox.lost()) == ([("b", 1)], 1)
    with Outbox(path, quota_bytes=size(large)) as outbox:
        outbox.append(large)
        assert (keys(outbox), outbox.lost()) == ([("b", 2)], 2)


def test_a_report_is_stored_once(outbox: Outbox) -> None:
    outbox.append(report(1))
    with pytest.raises(sqlite3.IntegrityError):
        outbox.append(report(1))
    assert keys(outbox) == [("b", 1)]


def test_it_is_durable_by_its_settings(outbox: Outbox) -> None:
    assert outbox._db is not None
    assert outbox._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert outbox._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert outbox._db.execute("PRAGMA busy_timeout").fetchone() == (10_000,)


def test_closing_is_not_a_crash(path: Path) -> None:
    outbox = Outbox(path, boot="a")
    outbox.append(report(1), open_windows=3)
    outbox.close()
    outbox.close()
    with Outbox(path, boot="c") as again:
        assert again.lost() == 0
        assert again.take_events() == ()


def test_the_open_windows_of_a_living_writer_are_not_lost(path: Path) -> None:
    with Outbox(path, boot="a") as living:
        living.set_open_windows(2)
        with Outbox(path, boot="c") as other:
            assert other.lost() == 0


def test_an_open_window_is_marked_only_when_its_number_changes(outbox: Outbox) -> None:
    assert outbox._db is not None
    outbox.set_open_windows(0)
    assert outbox._db.execute("SELECT count(*) FROM writers").fetchone() == (0,)
    outbox.set_open_windows(2)
    outbox.set_open_windows(2)
    assert outbox._db.execute("SELECT boot, open FROM writers").fetchall() == [("b", 2)]
    outbox.append(report(1), open_windows=1)
    assert outbox._db.execute("SELECT boot, open FROM writers").fetchall() == [("b", 1)]
    outbox.append(report(2))
    assert outbox._db.execute("SELECT boot, open FROM writers").fetchall() == [("b", 1)]


@pytest.mark.parametrize("process", ["", "nonsense", f"{os.getpid()} 1 x", "999999999 5 x"])
def test_a_writer_is_gone_when_its_process_is_or_the_number_is_anothers(path: Path, process: str) -> None:
    with Outbox(path, boot="a") as outbox:
        outbox.set_open_windows(3)
        assert outbox._db is not None
        outbox._db.execute("UPDATE writers SET process = ?", (process,))
        outbox._disconnect()
    with Outbox(path, boot="c", wall=lambda: 5.0) as again:
        assert again.lost() == 3
        (event,) = again.take_events()
        assert (event.unix_s, event.kind, event.level) == (5.0, "lost", "warning")
        assert again.take_events() == ()
    with Outbox(path, boot="d") as later:
        assert later.lost() == 3  # counted once


def empty_with_version(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 1")
    db.execute("CREATE TABLE other(x)")
    db.close()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "not a database": lambda path: path.write_bytes(b"this is not a database, however long it is " * 100),
    "a page of zeros": lambda path: path.write_bytes(
        path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096)
    ),
    "another's tables": empty_with_version,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_put_aside_and_the_loss_counted(path: Path, damage: str) -> None:
    with Outbox(path, boot="a") as outbox:
        outbox.append(*[report(k) for k in range(1, 40)])
    DAMAGES[damage](path)
    with Outbox(path, boot="c", wall=lambda: 5.0) as outbox:
        assert outbox.append(report(1, "c"))
        assert keys(outbox) == [("c", 1)]
        assert outbox.lost() >= 1
        events = outbox.take_events()
        assert [event.kind for event in events] == ["lost"]
        assert "the outbox was damaged" in events[0].text
        lost = outbox.lost()
    assert path.with_name("outbox.sqlite.damaged").exists()
    with Outbox(path) as again:
        assert (again.lost(), again.take_events()) == (lost, ())


def test_damage_that_spared_the_tally_is_counted_in_full(path: Path) -> None:
    with Outbox(path, boot="a", quota_bytes=size(*[report(k) for k in range(10, 50)])) as outbox:
        outbox.append(*[report(k) for k in range(10, 55)])
        assert outbox.depth()[0] == 40
        assert outbox._db is not None
        (root,) = outbox._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'windows'").fetchone()
    data = bytearray(path.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    with Outbox(path) as outbox:
        assert outbox.read() == []
        assert outbox.lost() == 40 + 5


def test_damage_found_by_one_process_reaches_the_other(path: Path) -> None:
    with Outbox(path, boot="w") as writer, Outbox(path, boot="r") as reader:
        writer.append(report(1, "w"))
        reader._connected()
        reader._quarantine(sqlite3.DatabaseError("database disk image is malformed"))
        assert writer.append(report(2, "w"))
        assert keys(reader) == [("w", 2)]
        assert reader.lost() == writer.lost() == 1


def test_a_file_that_another_process_has_replaced_is_not_put_aside(path: Path) -> None:
    with Outbox(path, boot="w") as slow:
        path.rename(path.with_name("elsewhere"))
        with Outbox(path, boot="x") as quick:
            quick.append(report(1, "x"))
            slow._quarantine(sqlite3.DatabaseError("database disk image is malformed"))
            assert keys(quick) == [("x", 1)]
            assert keys(slow) == [("x", 1)]


def test_a_torn_window_is_dropped_and_counted(outbox: Outbox) -> None:
    outbox.append(report(1), report(2), report(3))
    assert outbox._db is not None
    outbox._db.execute(
        "UPDATE windows SET body = CAST(replace(body, 'digits', 'dogits') AS BLOB) WHERE seq = 2"
    )
    assert keys(outbox) == [("b", 1), ("b", 3)]
    assert (outbox.depth()[0], outbox.lost()) == (2, 1)
    assert keys(outbox) == [("b", 1), ("b", 3)]
    assert outbox.lost() == 1


def test_a_folder_that_cannot_be_made_loses_and_counts_but_does_not_raise(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("", encoding="utf-8")
    with Outbox(blocker / "outbox.sqlite", boot="b", wall=lambda: 5.0) as outbox:
        assert not outbox.append(report(1), report(2))
        assert not outbox.append(report(3))
        assert (outbox.read(), outbox.depth(), outbox.lost()) == ([], (0, 0), 3)
        assert outbox.acknowledge([("b", 1)]) == 0
        (event,) = outbox.take_events()  # said once
        assert event == Event(5.0, "lost", event.text, "warning")
        assert "the outbox cannot be written" in event.text
        blocker.unlink()
        assert outbox.append(report(4))
        assert (keys(outbox), outbox.lost()) == ([("b", 4)], 3)
    with Outbox(blocker / "outbox.sqlite") as again:
        assert again.lost() == 3


FULL_DISK = """
import os, sys
from pathlib import Path
import msgspec
from edgekit.monitor.outbox import Outbox
from tests.monitor.test_outbox import keys, report
folder = Path(sys.argv[1])
outbox = Outbox(folder / "outbox.sqlite", boot="b")
stored = [seq for seq in range(1, 201) if outbox.append(report(seq, model="m" * 2000))]
filler = (folder / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
seq, refused = 201, 0
while refused < 3 and seq < 5000:
    if outbox.append(report(seq, model="m" * 2000)):
        stored.append(seq)
    else:
        refused += 1
    seq += 1
assert refused == 3, "the disk never filled"
assert outbox.lost() == 3
assert [s for _, s in keys(outbox)] == stored
assert outbox.acknowledge(keys(outbox)[:150]) == 150
assert [s for _, s in keys(outbox)] == stored[150:]
assert outbox.append(report(seq, model="m" * 2000)), "room was made"
assert outbox.lost() == 3
filler.close()
outbox.close()
again = Outbox(folder / "outbox.sqlite")
assert [s for _, s in keys(again)] == [*stored[150:], seq]
assert again.lost() == 3
again.close()
print("survived")
"""


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 4 MiB, mounted for this test where the machine lets us."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "edgekit-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_windows_are_counted_as_lost_and_acknowledging_works(small_disk: Path) -> None:
    child = subprocess.run(
        python_command("-W", "error", "-c", FULL_DISK, str(small_disk)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert child.stdout == "survived\n", child.stderr


def test_a_full_file_refuses_counts_and_recovers(outbox: Outbox) -> None:
    """SQLite's own limit of pages gives its own "full" where no small disk can be mounted."""
    outbox.append(report(1))
    assert outbox._db is not None
    pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._db.execute(f"PRAGMA max_page_count = {pages + 60}")
    stored = [k for k in range(2, 600) if outbox.append(report(k, model="m" * 2000))]
    refused = 598 - len(stored)
    assert refused > 0
    assert outbox.lost() == refused
    (event,) = outbox.take_events()
    assert event.text == "the outbox cannot be written: database or disk is full"
    assert [k for _, k in keys(outbox)] == [1, *stored]
    assert len(stored) > 50
    assert outbox.acknowledge(keys(outbox)[:50]) == 50
    assert outbox.append(report(600, model="m" * 2000))
    assert outbox.lost() == refused


WRITER = """
import sys
from edgekit.monitor.outbox import Outbox
from tests.monitor.test_outbox import report
outbox = Outbox(sys.argv[1])
outbox.set_open_windows(2)
while True:
    first, second = outbox.next_seq(), outbox.next_seq()
    outbox.append(report(first, outbox.boot), report(second, outbox.boot), open_windows=2)
    print(outbox.boot, second, flush=True)
"""


def run_and_kill(path: Path, seconds: float) -> tuple[str, int]:
    """Let a child append pairs, kill it in the middle; return its boot and what it said was stored."""
    child = subprocess.Popen(
        python_command("-c", WRITER, str(path)), stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdout is not None
    said = [child.stdout.readline()]
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    said += child.stdout.readlines()
    child.stdout.close()
    child.wait()
    whole = [line for line in said if line.endswith("\n")]
    boot, seq = whole[-1].split()
    return boot, int(seq)


def test_sigkill_tears_nothing_and_doubles_nothing(path: Path) -> None:
    stop = threading.Event()
    acknowledged: list[tuple[str, int]] = []

    def agent() -> None:
        with Outbox(path, boot="agent") as outbox:
            while not stop.is_set():
                rows = outbox.read(5)
                for boot, seq, body in rows:
                    assert msgspec.json.decode(body, type=WindowReport) == report(seq, boot)
                assert outbox.acknowledge([(boot, seq) for boot, seq, _ in rows]) == len(rows)
                acknowledged.extend((boot, seq) for boot, seq, _ in rows)
                time.sleep(0.002)

    reader = threading.Thread(target=agent)
    reader.start()
    try:
        boots = [run_and_kill(path, seconds) for seconds in (0.05, 0.11, 0.17)]
    finally:
        stop.set()
        reader.join()
    with Outbox(path, boot="after") as outbox:
        everything = acknowledged + keys(outbox)
        for _, _, body in outbox.read(100_000, 1 << 30):
            msgspec.json.decode(body, type=WindowReport)
        assert outbox.lost() == 2 * len(boots)  # the open windows of each child
        assert outbox._db is not None
        assert outbox._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(everything) == len(set(everything))
    for boot, seq in boots:
        got = sorted(k for b, k in everything if b == boot)
        assert got == list(range(1, len(got) + 1))
        assert len(got) in (seq, seq + 2)  # the last pair may be stored and not yet said; never half of it


def test_writers_and_readers_of_several_threads_get_along(path: Path) -> None:
    with Outbox(path, boot="a") as one, Outbox(path, boot="c") as two:

        def write(outbox: Outbox) -> None:
            for _ in range(30):
                assert outbox.append(report(outbox.next_seq(), outbox.boot))

        threads = [threading.Thread(target=write, args=(outbox,)) for outbox in (one, two, one)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(keys(two)) == [("a", k) for k in range(1, 61)] + [("c", k) for k in range(1, 31)]
        assert one.depth()[0] == 90


def test_opening_reads_no_rows(path: Path) -> None:
    """A backlog costs nothing at the start: the counts are kept, not counted."""
    with Outbox(path) as outbox:
        outbox.append(*[report(k) for k in range(1, 2001)])
    with Outbox(path) as again:
        assert again._db is not None
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        again._disconnect()
        connect = sqlite3.connect

        def watched(*args: object, **words: object) -> sqlite3.Connection:
            db: sqlite3.Connection = connect(*args, **words)  # type: ignore[call-overload]
            db.set_progress_handler(step, 1)
            return db

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", watched)
            assert again.depth()[0] == 2000
            assert again.lost() == 0
        assert 0 < steps < 500


def test_importing_the_outbox_needs_no_numpy() -> None:
    code = "import sys; import edgekit.monitor.outbox; sys.exit('numpy' in sys.modules)"
    assert subprocess.run(python_command("-c", code), check=False).returncode == 0

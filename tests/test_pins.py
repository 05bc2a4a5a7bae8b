"""A plan pinned by measurement: taken where nothing is asked for by hand, and only for that bundle on that device."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgekit import profiling
from edgekit.bundle import Bundle
from edgekit.candidates import Candidate
from edgekit.detect import detect
from edgekit.errors import UnavailableError
from edgekit.local import open_here, session_here
from edgekit.manifest import Plan
from edgekit.measure import Job, Sample, measure
from edgekit.pins import Pin, read_pin, remove_pin, write_pin
from edgekit.profiling import Measurement, pick
from edgekit.stability import Stability
from edgekit.timing import Latency
from tests.conversions import run_main
from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import runtime_or_skip

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture(name="bundle")
def _bundle(tmp_path: Path) -> Bundle:
    runtime_or_skip("litert")
    return write_tiny(tmp_path / "bundle", ("tflite-fp32", "onnx-fp32"))


def pin_of(bundle: Bundle, **changed: object) -> Pin:
    plan = Plan(detect().profile_id, "tflite-fp32", "litert", ("CPU",), 2)
    pin = Pin(1, bundle.digest, detect().profile_id, plan, 0.034, "0.1.0")
    return msgspec.structs.replace(pin, **changed)


def plan_here(bundle: Bundle, **words: object) -> Plan:
    return open_here(bundle, lambda _bundle, _plan: None, **words)[0]  # type: ignore[arg-type]


def test_the_pinned_plan_is_taken_with_its_reason(bundle: Bundle) -> None:
    write_pin(pin_of(bundle))
    plan = plan_here(bundle)
    assert (plan.artifact, plan.runtime, plan.threads) == ("tflite-fp32", "litert", 2)
    assert plan.reasons == ("pinned here by edgekit profile --pick: tflite-fp32 in litert, p50 0.034 ms",)
    with session_here(bundle) as (same, session):
        assert same == plan
        assert session.placement


@pytest.mark.parametrize("words", [{"runtime": "litert"}, {"artifact": "tflite-fp32"}, {"threads": 1}])
def test_what_is_asked_for_by_hand_goes_first(bundle: Bundle, words: dict[str, object]) -> None:
    write_pin(pin_of(bundle))
    assert "pinned" not in " ".join(plan_here(bundle, **words).reasons)


@pytest.mark.parametrize("change", [{"device": "jetson"}, {"schema": 2}, {"digest": "0" * 64}])
def test_another_device_or_version_is_chosen_anew(bundle: Bundle, change: dict[str, object]) -> None:
    file = write_pin(pin_of(bundle, **change))
    file.rename(file.with_name(f"{bundle.digest}.json"))
    assert read_pin(bundle.digest, detect().profile_id) is None
    assert "pinned" not in " ".join(plan_here(bundle).reasons)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"schema": 1}'])
def test_a_damaged_pin_counts_as_none(bundle: Bundle, content: bytes) -> None:
    write_pin(pin_of(bundle)).write_bytes(content)
    assert read_pin(bundle.digest, detect().profile_id) is None


def test_a_pinned_plan_that_does_not_start_is_told_and_chosen_anew(bundle: Bundle) -> None:
    write_pin(pin_of(bundle))
    tried: list[str] = []

    def opener(_bundle: Bundle, plan: Plan) -> str:
        tried.append(plan.artifact)
        if len(tried) == 1:
            raise UnavailableError("the driver is gone")
        return "opened"

    plan, opened = open_here(bundle, opener)
    assert opened == "opened"
    assert plan.reasons[0] == "the pinned plan does not start any more: the driver is gone"


def test_forgetting(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    write_pin(pin_of(bundle))
    assert "forgotten" in run_main(["profile", bundle.root, "--unpin"], capsys).out
    assert "nothing was pinned" in run_main(["profile", bundle.root, "--unpin"], capsys).out
    assert not remove_pin(bundle.digest)


def times(p50_ms: dict[str, float], verdict: str = "stable") -> object:
    """Return what measures candidates: the real thing, with the median and the verdict that are given."""

    def measured(job: Job, candidate: Candidate, _show: object) -> Measurement:
        short = msgspec.structs.replace(job, seconds=0.01)
        sample: Sample = measure(short, lambda _phase, _share: None)
        latency: Latency = msgspec.structs.replace(
            sample.latency, percentiles={"p50": p50_ms[candidate.plan.artifact] / candidate.plan.threads}
        )
        return Measurement(
            candidate, msgspec.structs.replace(sample, latency=latency, stability=Stability(verdict, ()))
        )

    return measured


def test_the_quickest_of_all_that_run_here_is_pinned(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_or_skip("onnxruntime")
    for quicker, other in (("onnx-fp32", "tflite-fp32"), ("tflite-fp32", "onnx-fp32")):
        monkeypatch.setattr(profiling, "_measure", times({quicker: 1.0, other: 3.0}))
        report, plan = pick(bundle, threads=(1, 2))
        assert plan is not None
        assert (plan.artifact, plan.threads) == (quicker, 2)
        assert len(report.measurements) == 4
        pin = read_pin(bundle.digest, detect().profile_id)
        assert pin is not None
        assert pin.p50_ms == 0.5
        assert plan_here(bundle).artifact == quicker


def test_on_a_busy_machine_nothing_is_pinned(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profiling, "_measure", times({"tflite-fp32": 1.0, "onnx-fp32": 1.0}, "unstable"))
    said = run_main(["profile", bundle.root, "--pick", "--threads", "1"], capsys)
    assert said.code == 5
    assert "nothing is pinned: the machine was not at rest" in said.line
    assert read_pin(bundle.digest, detect().profile_id) is None


def test_what_fails_its_golden_set_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_or_skip("litert")
    bundle = write_tiny(tmp_path / "tflite", ("tflite-fp32",))
    from edgekit import verify

    def broken(*_args: object, **_words: object) -> object:
        raise UnavailableError("it crashes")

    monkeypatch.setattr(verify, "prove", broken)
    with pytest.raises(
        UnavailableError, match=r"no accepted artifact .* passes its golden set here: it crashes"
    ):
        pick(bundle)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pick", "--batch", "2"], "--batch has no meaning with --pick"),
        (["--unpin", "--device", "jetson"], "--device has no meaning with --unpin"),
        (["--unpin", "--pick"], "--unpin measures nothing"),
        (["--state-dir", "x"], "--state-dir has no meaning here"),
    ],
)
def test_options_that_would_be_ignored(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    found = run_main(["profile", bundle.root, *words], capsys)
    assert found.code == 2
    assert said in found.line

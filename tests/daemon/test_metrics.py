from __future__ import annotations

import math
import re

import numpy as np
import pytest

from edgekit.daemon.lane import Lane
from edgekit.daemon.metrics import exposition
from edgekit.monitor.buckets import observations
from edgekit.tensors import TensorSpec
from tests.daemon.serving import affine, model_of

pytestmark = pytest.mark.device

LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\+Inf|-Inf|NaN|[-+0-9.e]+)')


def parse(text: str) -> dict[str, float]:
    """Read the text format; every line must be well formed, and every family must come in one piece."""
    samples: dict[str, float] = {}
    families: list[str] = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            families.append(line.split()[2])
            continue
        if line.startswith("# HELP "):
            continue
        matched = LINE.fullmatch(line)
        assert matched, line
        assert matched[1].startswith(families[-1]), line
        assert f"{matched[1]}{{{matched[2]}}}" not in samples
        samples[f"{matched[1]}{{{matched[2] or ''}}}"] = float(matched[3])
    assert len(families) == len(set(families))
    return samples


def classifier() -> Lane:
    model = model_of(
        'odd"name\\',
        [TensorSpec("x", "float32", (-1, 3))],
        [TensorSpec("p", "float32", (-1, 3))],
        lambda feed: {"p": feed["x"]},
        task="classification",
    )
    return Lane(model, queue_limit=4, body_limit=1000)


def test_exposition_says_what_the_monitor_counted() -> None:
    lane = classifier()
    for row in ([0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [math.nan, 0, 0]):
        lane.model.infer({"x": np.array([row, row], np.float32)})
    lane.count(200)
    lane.count(200)
    lane.count(400)
    lane.waiting = 3
    reply = exposition([lane], {200: 5}, ready=True)
    assert reply.content_type == "text/plain; version=0.0.4; charset=utf-8"
    got = parse(b"".join(reply.chunks).decode())
    who = 'model="odd\\"name\\\\",version="1"'
    assert got["edgekit_ready{}"] == 1
    assert got['edgekit_http_requests_total{model="",code="200"}'] == 5
    assert got[f'edgekit_http_requests_total{{{who},code="200"}}'] == 2
    assert got[f'edgekit_http_requests_total{{{who},code="400"}}'] == 1
    assert got[f"edgekit_queue_depth{{{who}}}"] == 3
    assert got[f"edgekit_inferences_total{{{who}}}"] == 8
    assert got[f"edgekit_nonfinite_outputs_total{{{who}}}"] == 2
    assert got[f'edgekit_predicted_class_total{{{who},class="0"}}'] == 4
    assert got[f'edgekit_predicted_class_total{{{who},class="2"}}'] == 2
    buckets = [value for key, value in got.items() if "_bucket" in key]
    assert buckets == sorted(buckets)
    assert got[f'edgekit_inference_duration_seconds_bucket{{{who},le="+Inf"}}'] == 4
    assert got[f"edgekit_inference_duration_seconds_count{{{who}}}"] == 4
    assert lane.model.monitor is not None
    histogram = lane.model.monitor.totals().latency
    assert observations(histogram) == 4
    assert got[f"edgekit_inference_duration_seconds_sum{{{who}}}"] == pytest.approx(histogram.sum_s)
    lane.stop()


def test_the_same_series_before_and_after_traffic() -> None:
    """A histogram whose bounds come and go cannot be summed over time."""
    lane = Lane(affine(), queue_limit=4, body_limit=1000)
    before = [
        key
        for key in parse(b"".join(exposition([lane], {}, ready=False).chunks).decode())
        if "_bucket" in key
    ]
    lane.model.infer({"x": np.ones((1, 4), np.float32)})
    after = [
        key
        for key in parse(b"".join(exposition([lane], {}, ready=False).chunks).decode())
        if "_bucket" in key
    ]
    assert before == after
    assert len(before) > 20
    lane.stop()


def test_a_model_without_a_monitor_has_its_queue_only() -> None:
    model = affine()
    model.monitor = None
    lane = Lane(model, queue_limit=4, body_limit=1000)
    got = parse(b"".join(exposition([lane], {}, ready=True).chunks).decode())
    assert set(got) == {"edgekit_ready{}", 'edgekit_queue_depth{model="affine",version="1"}'}
    lane.stop()

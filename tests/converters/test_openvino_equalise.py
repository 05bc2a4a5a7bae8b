"""Equalisation of OpenVINO models: exact in float, only where it pays, and what it saves in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("nncf")
import openvino as ov

from edgekit.converters.openvino_equalise import (
    equalise,
    find_exponents,
    power_exponents,
    recall,
    remember,
)
from edgekit.streams import Samples
from tests.converters.nets import convolutions, graph, images, int8, node, snr_db
from tests.converters.test_openvino import INT8, Bench, answers

pytestmark = [
    pytest.mark.convert,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # NNCF's own imports
]

RANDOM = np.random.default_rng(11)
#: Three decades between the smallest channel and the largest.
WIDE = np.exp2(np.linspace(-5, 5, 16)).astype(np.float32)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def behind_relu(*, second_reader: bool = False) -> Any:
    """Return convolution, ReLU, pooling, convolution; the channels between are WIDE."""
    by_row, by_column = WIDE.reshape(-1, 1, 1, 1), WIDE.reshape(1, -1, 1, 1)
    weights = {
        "k0": floats(16, 3, 3, 3) * by_row,
        "b0": floats(16) * WIDE,
        "k1": floats(8, 16, 3, 3) / by_column,
    }
    nodes = [
        node("Conv", "x k0 b0", "a"),
        node("Relu", "a", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p k1", "y"),
    ]
    outputs: dict[str, list[Any]] = {"y": ["n", 8, 5, 5]}
    if second_reader:
        nodes.append(node("Sigmoid", "p", "z"))
        outputs["z"] = ["n", 16, 7, 7]
    return graph(nodes, {"x": ["n", 3, 16, 16]}, outputs, weights)


def around_depthwise() -> Any:
    """Return a depthwise convolution whose channels are WIDE in front and, in another order, behind."""
    front, behind = WIDE.reshape(-1, 1, 1, 1), WIDE[::-1].reshape(-1, 1, 1, 1)
    weights = {
        "k0": floats(16, 3, 3, 3) * front,
        "kd": floats(16, 1, 3, 3) / front * behind,
        "k1": floats(8, 16, 1, 1) / behind.reshape(1, -1, 1, 1),
    }
    nodes = [
        node("Conv", "x k0", "a"),
        node("Relu", "a", "ar"),
        node("Conv", "ar kd", "d", group=16),
        node("Relu", "d", "dr"),
        node("Conv", "dr k1", "y"),
    ]
    return graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 8, 12, 12]}, weights)


def wide_inputs() -> Any:
    """Return two dense layers on features that are WIDE."""
    weights = {"w0": floats(16, 32) / WIDE.reshape(-1, 1), "w1": floats(32, 8)}
    nodes = [node("MatMul", "x w0", "h"), node("Relu", "h", "r"), node("MatMul", "r w1", "y")]
    return graph(nodes, {"x": ["n", 16]}, {"y": ["n", 8]}, weights)


def features(n: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32) * WIDE}


NETS = {
    "relu": (behind_relu(), images),
    "depthwise": (around_depthwise(), images),
    "inputs": (wide_inputs(), features),
}


def changed(bench: Bench) -> tuple[Any, dict[str, list[int]], list[str]]:
    """Return the equalised float model, by what, and the nodes put in."""
    exponents = find_exponents(bench.model, bench.calibration)
    model = ov.Core().read_model(str(bench.source.path))
    return model, exponents, equalise(model, exponents)


def largest_error(model: Any, bench: Bench, samples: Samples) -> float:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = np.concatenate([compiled(sample)[0].reshape(1, -1) for sample in samples])
    return float(np.abs(got - bench.exact).max() / np.abs(bench.exact).max())


@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_and_int8_keeps_it(name: str, tmp_path: Path) -> None:
    bench = Bench(*NETS[name], tmp_path)
    model, exponents, _ = changed(bench)
    assert exponents
    assert largest_error(model, bench, bench.evaluation) < 1e-6
    by_hand = snr_db(bench.exact, bench.by_hand())
    made = bench.make("o", int8())
    ours = snr_db(bench.exact, answers(made, bench.evaluation))
    assert ours > 25.0
    assert ours > by_hand + 10.0
    assert recall(ov.Core().read_model(str(made))) == exponents
    ratios = INT8.layers(bench.source, int8(), made, bench.calibration)
    assert len(ratios) == sum(
        node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul") for node in model.get_ops()
    )
    assert min(ratios.values()) > 20.0


def test_factors_go_into_the_weights_where_only_relu_and_pooling_are_between(tmp_path: Path) -> None:
    for name, net, put_in in (
        ("alone", behind_relu(), 0),
        ("shared", behind_relu(second_reader=True), 1),
        ("inputs", wide_inputs(), 1),
    ):
        (tmp_path / name).mkdir()
        bench = Bench(net, features if name == "inputs" else images, tmp_path / name)
        model, exponents, inserted = changed(bench)
        assert len(exponents) == 1, name
        assert len(inserted) == put_in, name
        assert len(model.get_ops()) == len(bench.model.get_ops()) + 2 * put_in, name
        assert largest_error(model, bench, bench.evaluation) < 1e-6, name


def test_a_net_of_like_channels_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    assert find_exponents(bench.model, bench.calibration) == {}
    made = bench.make("o", int8())
    assert "edgekit_equalised" not in made.read_text(encoding="utf-8")


def test_layers_that_stay_in_float_ask_for_nothing(tmp_path: Path) -> None:
    bench = Bench(behind_relu(), images, tmp_path)
    (name,) = find_exponents(bench.model, bench.calibration)
    assert find_exponents(bench.model, bench.calibration, skip=(name,)) == {}


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    model = Bench(wide_inputs(), features, tmp_path).model
    assert recall(model) == {}
    remember(model, {"MatMul_3": [-2, 0, 11], "A": [0]})
    assert recall(model) == {"MatMul_3": [-2, 0, 11], "A": [0]}


def ranges(spans: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    high = np.array(spans)
    return np.zeros(len(spans)), high, np.square(high) / 3


def test_an_outlier_channel_with_small_weights_is_divided() -> None:
    weights = np.ones((4, 8, 1))
    weights[:, 2] /= 1024
    exponents = power_exponents(weights, *ranges([1, 1, 1024, 1, 1, 1, 1, 1]), alone=False)
    assert exponents is not None
    assert exponents.tolist() == [0, 0, 10, 0, 0, 0, 0, 0]
    # rows have their own scales: one that is large decides nothing
    weights[0] *= 4096
    again = power_exponents(weights, *ranges([1, 1, 1024, 1, 1, 1, 1, 1]), alone=False)
    assert again is not None
    assert again.tolist() == exponents.tolist()


def test_a_silent_channel_is_taken_to_say_as_much_as_the_others() -> None:
    weights = np.ones((4, 8, 1))
    weights[:, 2] /= 1024
    weights[:, 5] /= 256
    exponents = power_exponents(weights, *ranges([1, 1, 1024, 1, 1, 0, 1, 1]), alone=False)
    assert exponents is not None
    assert exponents.tolist() == [0, 0, 10, 0, 0, 8, 0, 0]


@pytest.mark.parametrize("spans", [[1.0, 1.2, 0.9, 1.0], [0.0, 0.0, 0.0, 0.0]])
def test_like_and_silent_channels_are_left_alone(spans: list[float]) -> None:
    assert power_exponents(np.ones((4, 4, 1)), *ranges(spans), alone=False) is None
    assert power_exponents(np.ones((4, 1, 9)), *ranges(spans), alone=True) is None


def test_channels_with_scales_of_their_own_bear_a_factor_of_a_hundred() -> None:
    weights = np.ones((3, 1, 9))
    assert power_exponents(weights, *ranges([1.0, 2.0, 99.0]), alone=True) is None
    exponents = power_exponents(weights, *ranges([1.0, 4.0, 1024.0]), alone=True)
    assert exponents is not None
    assert exponents.tolist() == [-2, 0, 8]

"""ONNX int8 and int8-dynamic: what is quantized, how well, and the field's failures rescued or refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx

from edgekit.calibration import Range
from edgekit.calibration_cache import CalibrationCache
from edgekit.converters import onnx_ranges
from edgekit.converters.onnx_bias import correct_biases
from edgekit.converters.onnx_dynamic import OnnxToDynamic
from edgekit.converters.onnx_equalise import equalise
from edgekit.converters.onnx_fp16 import OnnxToFp16
from edgekit.converters.onnx_int8 import OnnxToInt8, quantize
from edgekit.converters.onnx_layers import pairs
from edgekit.converters.onnx_policy import FLOAT, LIGHT, MOVES, candidates, choose
from edgekit.converters.onnx_prepare import HEAVY, Prepared, prepare
from edgekit.converters.onnx_ranges import ranges
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import SampleFolder
from tests.converters.nets import (
    agreement,
    attention,
    boxes_and_scores,
    convolutions,
    depthwise,
    graph,
    images,
    int8,
    joint_before_a_layer,
    make,
    node,
    plain_quantizer,
    rows,
    snr_db,
    source_of,
    stored,
    tokens,
)

pytestmark = [
    pytest.mark.convert,
    # the tool that is compared with warns of what it does
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

INT8 = OnnxToInt8()


class Bench:
    """A net with calibration and evaluation data, and what converters make of it."""

    def __init__(self, net: Any, data: Any, folder: Path) -> None:
        self.net, self.folder = net, folder
        self.source = source_of(net, folder)
        self.calibration = stored(folder / "calibration", data(48, 1))
        self.evaluation = stored(folder / "evaluation", data(128, 9))
        self.exact = rows(str(self.source.path), self.evaluation)

    def answers(self, name: str, recipe: Recipe) -> np.ndarray:
        path = make(INT8, self.source, self.folder / name, recipe, self.calibration).path
        return rows(path, self.evaluation)

    def model(self, name: str, recipe: Recipe) -> Any:
        return onnx.load(make(INT8, self.source, self.folder / name, recipe, self.calibration).path)

    def by_hand(self) -> np.ndarray:
        return rows(plain_quantizer(self.net, self.calibration, self.folder), self.evaluation)


def operators(model: Any) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


# What is quantized


def test_convolutions_become_integers_and_the_answer_is_not_squeezed_into_steps(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    model = bench.model("o", int8())
    onnx.checker.check_model(model, full_check=True)
    kinds = operators(model)
    assert kinds["BatchNormalization"] == kinds["Relu"] == 0  # in the weights, and in the scales
    assert kinds["Conv"] == 3
    made = pairs(model)
    assert "y" not in made
    assert len(made) == 6
    weights = {t.name: t for t in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    for layer in layers:
        pair = next(n for n in model.graph.node if n.output[0] == layer.input[1])
        assert weights[pair.input[0]].data_type == onnx.TensorProto.INT8
        assert len(weights[pair.input[1]].dims) == 1
    got = rows(make(INT8, bench.source, tmp_path / "p", int8(), bench.calibration).path, bench.evaluation)
    assert snr_db(bench.exact, got) >= snr_db(bench.exact, bench.by_hand())


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    bench = Bench(attention(), tokens, tmp_path)
    recipe = int8("mse", bias_correction="full", equalise=True)
    parts = [
        Path(make(INT8, bench.source, tmp_path / name, recipe, bench.calibration).path).read_bytes()
        for name in "ab"
    ]
    assert parts[0] == parts[1]


def test_every_operator_has_one_place_in_the_table() -> None:
    everything = [*HEAVY, *LIGHT, *MOVES, *FLOAT]
    assert len(set(everything)) == len(everything)
    assert all(FLOAT.values())


def test_light_operators_are_integers_only_between_integers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {f"k{i}": random.standard_normal((4, 4, 1, 1)).astype(np.float32) for i in range(3)}
    nodes = [
        node("Conv", "x k0", "a"),
        node("Conv", "x k1", "b"),
        node("Add", "a b", "inner"),  # between convolutions
        node("Conv", "inner k2", "c"),
        node("Add", "c x", "outer"),  # the input and the answer are float
        node("Sigmoid", "outer", "y"),
    ]
    source = source_of(graph(nodes, {"x": ["n", 4, 8, 8]}, {"y": ["n", 4, 8, 8]}, weights), tmp_path)
    prepared = prepare(source.path, tmp_path)
    layers = choose(prepared, {}, ()).layers
    kinds = Counter(name.partition("_")[0] for name in layers)
    assert kinds == {"Conv": 3, "Add": 1}
    kept = next(name for name in layers if name.startswith("Add"))
    assert not [n for n in choose(prepared, {}, [kept]).layers if n.startswith("Add")]


def test_a_head_stays_float_and_so_does_a_softmax(tmp_path: Path) -> None:
    bench = Bench(attention(1.0), tokens, tmp_path)
    model = bench.model("o", int8())
    integers = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    assert softmax.input[0] not in integers
    assert softmax.output[0] not in pairs(model)
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    stored_weights = [n for n in products if n.input[1] in integers]
    assert len(products) - len(stored_weights) == 2  # products of two activations
    adds = [n for n in model.graph.node if n.op_type == "Add"]
    assert not [n for n in adds if set(n.input) & integers]  # biases and residuals in float


def test_a_layer_that_is_kept_stays_float(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    layers = INT8.layers(
        bench.source, int8(), Path(make(INT8, bench.source, tmp_path / "o", int8(), bench.calibration).path),
        bench.calibration,
    )  # fmt: skip
    assert list(layers.values()) == sorted(layers.values())
    assert {name.partition("_")[0] for name in layers} >= {"Conv", "Gemm"}
    kept = next(name for name in layers if name.startswith("Conv"))
    model = bench.model("kept", int8(kept=(kept,)))
    layer = next(n for n in model.graph.node if n.name == kept)
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert layer.input[1] in floats
    with pytest.raises(ConversionError, match="the model has no layer 'Conv_99' to keep in float"):
        bench.model("none", int8(kept=("Conv_99",)))


def test_a_net_without_weights_is_refused(tmp_path: Path) -> None:
    source = source_of(graph([node("Relu", "x", "y")], {"x": ["n", 2]}, {"y": ["n", 2]}, {}), tmp_path)
    samples = stored(tmp_path / "s", {"x": np.ones((4, 2), np.float32)})
    with pytest.raises(ConversionError, match="no layer of the model has weights"):
        make(INT8, source, tmp_path / "o", int8(), samples)
    with pytest.raises(ConversionError, match="no layer of the model has weights"):
        make(OnnxToDynamic(), source, tmp_path / "d")


# Ranges


def test_the_graphs_own_extremes_are_those_of_the_histograms(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    prepared = prepare(bench.source.path, tmp_path)
    names = candidates(prepared)
    ends = ranges(prepared, names, bench.calibration, "minmax", symmetric=False)
    clipped = ranges(prepared, names, bench.calibration, "mse", symmetric=False)
    assert set(ends) == set(clipped) == set(names)
    for name in names:
        assert ends[name][0] <= clipped[name][0] <= 0.0 <= clipped[name][1] <= ends[name][1]
    given = np.concatenate([sample["x"] for sample in bench.calibration])
    assert ends["x"] == (float(given.min()), float(given.max()))


class Counting(SampleFolder):
    """Samples that count how often they are read."""

    reads = 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        self.reads += 1
        return super().__getitem__(index)


def test_a_ladder_of_ranges_reads_the_data_twice(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    samples = Counting(tmp_path / "calibration")
    for i, method in enumerate(("minmax", "mse", "percentile", "minmax", "mse")):
        make(INT8, bench.source, tmp_path / f"o{i}", int8(method), samples)
    assert samples.reads <= 2 * len(samples) + 2


def test_a_later_conversion_finds_the_ranges_unless_model_or_data_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench = Bench(convolutions(), images, tmp_path)
    prepared = prepare(bench.source.path, tmp_path)
    names = candidates(prepared)

    def measure(net: Prepared, samples: SampleFolder) -> dict[str, Range]:
        monkeypatch.setattr(onnx_ranges, "_SEEN", CalibrationCache())  # as in another process
        return ranges(net, names, samples, "mse", symmetric=False)

    samples = Counting(tmp_path / "calibration")
    first = measure(prepared, samples)
    assert samples.reads
    samples.reads = 0
    assert measure(prepared, samples) == first
    assert not samples.reads
    other = {"x": np.concatenate([2.0 * sample["x"] for sample in samples])}
    assert measure(prepared, stored(tmp_path / "other", other)) != first
    samples.reads = 0
    kernel = next(t for t in prepared.model.graph.initializer if len(t.dims) > 1)
    kernel.CopyFrom(onnx.numpy_helper.from_array(3.0 * onnx.numpy_helper.to_array(kernel), kernel.name))
    assert measure(prepared, samples) != first
    assert samples.reads


def test_an_infinite_activation_is_told(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k", "c"), node("Conv", "c k", "y")]
    net = graph(
        nodes, {"x": ["n", 1, 2, 2]}, {"y": ["n", 1, 2, 2]}, {"k": np.full((1, 1, 1, 1), 1e30, np.float32)}
    )
    samples = stored(tmp_path / "s", {"x": np.full((4, 1, 2, 2), 1e10, np.float32)})
    with pytest.raises(ConversionError, match="is not finite on a calibration sample"):
        make(INT8, source_of(net, tmp_path), tmp_path / "o", int8(), samples)


def test_an_unknown_method_or_correction_is_told(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    with pytest.raises(Exception, match="unknown calibration 'magic'"):
        bench.model("a", int8("magic"))
    with pytest.raises(ConversionError, match="unknown bias correction 'some'"):
        bench.model("b", int8(bias_correction="some"))


# Bias correction


@pytest.mark.parametrize(("symmetric", "activation"), [(False, "uint8"), (True, "int8")])
def test_bias_correction_takes_the_shift_out_of_every_channel(
    tmp_path: Path, symmetric: bool, activation: str
) -> None:
    bench = Bench(depthwise(), images, tmp_path)
    options: dict[str, Any] = {"symmetric_activations": symmetric, "activation": activation}

    def shift(**more: Any) -> float:
        got = bench.answers(f"o{len(more)}{more.get('bias_correction')}", int8(**options, **more))
        return float(np.abs((got - bench.exact).mean(0)).max() / np.ptp(bench.exact))

    plain, fast, full = shift(), shift(bias_correction="fast"), shift(bias_correction="full")
    assert full < 0.02
    assert full < fast < plain


def test_layers_correction_one_after_the_other_needs_no_more_than_one_pass(tmp_path: Path) -> None:
    """The samples go through the model part by part: what a part makes is what the whole model makes."""
    bench = Bench(convolutions(), images, tmp_path)
    prepared = prepare(bench.source.path, tmp_path)
    model = quantize(prepared, int8(), bench.calibration)
    before = {t.name: t.SerializeToString() for t in model.graph.initializer}
    correct_biases(prepared, model, bench.calibration, sequential=True)
    changed = [t.name for t in model.graph.initializer if t.SerializeToString() != before[t.name]]
    assert len(changed) == 4
    assert all("bias" in name or name.startswith("w") for name in changed)
    settled = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    correct_biases(prepared, model, bench.calibration, sequential=True)
    for tensor in model.graph.initializer:
        if tensor.name in changed:  # nothing is left to correct, to within one step of a 32-bit bias
            off = onnx.numpy_helper.to_array(tensor).astype(np.int64) - settled[tensor.name]
            assert np.abs(off).max() <= 1


# The field's failures


def test_boxes_and_scores_are_rescued_from_one_scale(tmp_path: Path) -> None:
    bench = Bench(boxes_and_scores(), images, tmp_path)

    def scores(answers: np.ndarray) -> np.ndarray:
        return answers.reshape(-1, 6, 256)[:, 4:]

    assert snr_db(scores(bench.exact), scores(bench.by_hand())) < 3.0  # the tool loses every score
    assert snr_db(scores(bench.exact), scores(bench.answers("o", int8()))) > 30.0


def test_a_joint_of_unlike_parts_keeps_what_reads_it_in_float(tmp_path: Path) -> None:
    bench = Bench(joint_before_a_layer(), images, tmp_path)
    assert snr_db(bench.exact, bench.by_hand()) < 3.0
    assert snr_db(bench.exact, bench.answers("o", int8())) > 30.0


def test_a_depthwise_net_that_collapses_by_tensor_is_rescued(tmp_path: Path) -> None:
    bench = Bench(depthwise(), images, tmp_path)
    assert agreement(bench.exact, bench.answers("t", int8(per_channel=False))) < 0.5
    rescued = bench.answers("c", int8(bias_correction="full"))
    assert snr_db(bench.exact, rescued) > 30.0
    worst = next(iter(INT8.layers(
        bench.source, int8(), Path(make(INT8, bench.source, tmp_path / "l", int8(), bench.calibration).path),
        bench.calibration,
    )))  # fmt: skip
    assert worst.startswith("Conv")
    kept = bench.answers("k", int8(kept=(worst,)))
    assert snr_db(bench.exact, kept) > 30.0


@pytest.mark.parametrize("outlier", [60.0, 2000.0])
def test_a_transformer_with_outlier_channels_is_rescued_by_equalising_them(
    tmp_path: Path, outlier: float
) -> None:
    bench = Bench(attention(outlier), tokens, tmp_path)
    assert snr_db(bench.exact, bench.by_hand()) < 12.0
    plain = bench.answers("p", int8())
    assert snr_db(bench.exact, plain) < 12.0
    rescued = bench.answers("e", int8(equalise=True))
    assert snr_db(bench.exact, rescued) > 30.0
    recipe = int8(equalise=True)
    layers = INT8.layers(
        bench.source, recipe, Path(make(INT8, bench.source, tmp_path / "l", recipe, bench.calibration).path),
        bench.calibration,
    )  # fmt: skip
    assert min(layers.values()) > 25.0
    worst = tuple(name for name, ratio in INT8.layers(
        bench.source, int8(), Path(make(INT8, bench.source, tmp_path / "m", int8(), bench.calibration).path),
        bench.calibration,
    ).items() if ratio < 20.0)  # fmt: skip
    assert snr_db(bench.exact, bench.answers("k", int8(kept=worst))) > 25.0


def test_equalising_changes_nothing_in_float(tmp_path: Path) -> None:
    bench = Bench(attention(60.0), tokens, tmp_path)
    equal = equalise(prepare(bench.source.path, tmp_path), bench.calibration)
    assert equal is not None
    onnx.save(equal.model, str(tmp_path / "equal.onnx"))
    np.testing.assert_allclose(rows(str(tmp_path / "equal.onnx"), bench.evaluation), bench.exact, atol=1e-4)
    (tmp_path / "c").mkdir()
    nothing = Bench(convolutions(), images, tmp_path / "c")
    with pytest.raises(ConversionError, match="no channels that it would make more alike"):
        nothing.model("o", int8(equalise=True))


def saturating(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multiply u8 [n, k] by s8 [k, m] as VPMADDUBSW does: neighbours' products add up in 16 bits, and saturate.

    Intel SDM, volume 2B: "multiplies … and adds adjacent pairs with signed saturation"; the sums go on in 32 bits.
    """
    products = values[:, :, None].astype(np.int64) * weights[None].astype(np.int64)
    pairs_of = np.clip(products[:, 0::2] + products[:, 1::2], -32768, 32767)
    result: np.ndarray = pairs_of.sum(1)
    return result


@pytest.mark.parametrize("reduce_range", [True, False])
def test_eight_bit_weights_saturate_without_vnni_and_seven_cannot(tmp_path: Path, reduce_range: bool) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    worst = []
    for converter, recipe in (
        (INT8, int8(reduce_range=reduce_range)),
        (OnnxToDynamic(), Recipe(("x",), "int8-dynamic", options={"reduce_range": reduce_range})),
    ):
        made = make(converter, bench.source, tmp_path / converter.precisions[0], recipe, bench.calibration)
        multiplied = [
            onnx.numpy_helper.to_array(t)
            for t in onnx.load(made.path).graph.initializer
            if t.data_type == onnx.TensorProto.INT8
            and len(t.dims) > 1
            and (converter is INT8 or len(t.dims) == 2)
        ]
        assert multiplied
        for weights in multiplied:
            matrix = weights.reshape(len(weights), -1).T if weights.ndim == 4 else weights
            matrix = matrix[: len(matrix) // 2 * 2]
            largest = np.sort(np.abs(matrix), axis=0)[
                ::-1
            ]  # the worst two that a kernel could put side by side
            values = np.full((1, len(largest)), 255, np.uint8)
            exact = values.astype(np.int64) @ largest.astype(np.int64)
            worst.append(float(np.abs(saturating(values, largest) - exact).max()))
    assert (max(worst) == 0.0) == reduce_range


# int8-dynamic and fp16


def test_dynamic_int8_is_a_quarter_and_close(tmp_path: Path) -> None:
    for name, net, data in (("c", convolutions(), images), ("t", attention(1.0), tokens)):
        folder = tmp_path / name
        folder.mkdir()
        bench = Bench(net, data, folder)
        made = make(OnnxToDynamic(), bench.source, folder / "o")
        model = onnx.load(made.path)
        onnx.checker.check_model(model)
        assert snr_db(bench.exact, rows(made.path, bench.evaluation)) > 30.0
        kinds = operators(model)
        assert kinds["MatMulInteger"] >= 1
        assert kinds["ConvInteger"] == 0
        floats = [t for t in model.graph.initializer if t.data_type == 1 and np.prod(t.dims) > 256]
        assert not floats


def test_tables_are_stored_row_by_row(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = (random.standard_normal((600, 64)) * np.logspace(-3, 3, 600)[:, None]).astype(np.float32)
    table[7] = 0.0
    net = graph(
        [node("Cast", "x", "i", to=7), node("Gather", "table i", "t"), node("MatMul", "t w", "y")],
        {"x": ["n", 5]}, {"y": ["n", 5, 8]},
        {"table": table, "w": random.standard_normal((64, 8)).astype(np.float32)},
    )  # fmt: skip
    source = source_of(net, tmp_path)
    data = {"x": random.integers(0, 600, (40, 5)).astype(np.float32)}
    data["x"][0] = 7
    samples = stored(tmp_path / "s", data)
    exact = rows(str(source.path), samples)
    for converter, recipe in ((OnnxToDynamic(), None), (INT8, int8())):
        made = make(converter, source, tmp_path / converter.precisions[0], recipe, samples)
        model = onnx.load(made.path)
        onnx.checker.check_model(model)
        assert Path(made.path).stat().st_size < Path(source.path).stat().st_size / 3
        assert not [t for t in model.graph.initializer if t.data_type == 1 and list(t.dims) == [600, 64]]
    dynamic = rows(str(tmp_path / "int8-dynamic" / "onnx-int8-dynamic" / "model.onnx"), samples)
    np.testing.assert_allclose(dynamic, exact, atol=0.02 * np.abs(exact).max())


def test_half_precision_of_an_old_opset_and_of_branches(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    made = make(OnnxToFp16(), bench.source, tmp_path / "o")
    assert snr_db(bench.exact, rows(made.path, bench.evaluation)) > 45.0

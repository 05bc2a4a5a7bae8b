"""OpenVINO int8 and weight-only int8: names, what stays float, and the field's failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("nncf")
import openvino as ov

from edgekit.converters.base import SourceModel
from edgekit.converters.onnx_openvino import OnnxToOpenVino
from edgekit.converters.openvino_int8 import OpenVinoToInt8
from edgekit.converters.openvino_layers import has_attention, mixed_joints, worthless
from edgekit.converters.openvino_weights import OpenVinoToWeights
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.streams import Samples
from tests.converters.nets import (
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
    snr_db,
    source_of,
    stored,
    tokens,
)

pytestmark = [
    pytest.mark.convert,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # NNCF's own imports
]

FLOAT = Recipe(("x",), "fp32", options={"static": False})
INT8 = OpenVinoToInt8()


def answers(path: str | Path, samples: Samples) -> np.ndarray:
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(sample)[0].reshape(1, -1) for sample in samples])


class Bench:
    """A net as float IR with calibration and evaluation data."""

    def __init__(self, net: Any, data: Any, folder: Path) -> None:
        self.folder = folder
        origin = source_of(net, folder)
        made = make(OnnxToOpenVino(), origin, folder / "float", FLOAT)
        self.source = SourceModel("openvino", Path(made.path), origin.inputs, origin.outputs)
        self.calibration = stored(folder / "calibration", data(48, 1))
        self.evaluation = stored(folder / "evaluation", data(128, 9))
        self.exact = answers(made.path, self.evaluation)
        self.model = ov.Core().read_model(made.path)

    def make(self, name: str, recipe: Recipe) -> Path:
        return Path(make(INT8, self.source, self.folder / name, recipe, self.calibration).path)

    def by_hand(self) -> np.ndarray:
        """Answer as NNCF at its defaults does."""
        import nncf

        quantized = nncf.quantize(
            ov.Core().read_model(str(self.source.path)), nncf.Dataset(self.calibration), subset_size=48
        )
        ov.save_model(quantized, str(self.folder / "hand.xml"))
        return answers(self.folder / "hand.xml", self.evaluation)


def test_layers_keep_their_names_and_can_be_kept_in_float(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    made = bench.make("o", int8())
    assert snr_db(bench.exact, answers(made, bench.evaluation)) > 30.0
    layers = INT8.layers(bench.source, int8(), made, bench.calibration)
    assert len(layers) == 4
    assert list(layers.values()) == sorted(layers.values())
    assert all(20.0 < ratio < 60.0 for ratio in layers.values())
    worst = next(iter(layers))
    kept = bench.make("kept", int8(kept=(worst,)))
    assert worst not in INT8.layers(bench.source, int8(), kept, bench.calibration)
    with pytest.raises(ConversionError, match="the model has no layer 'Convolution_99' to keep"):
        bench.make("none", int8(kept=("Convolution_99",)))


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    bench = Bench(convolutions(), images, tmp_path)
    first, second = (bench.make(name, int8()) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".bin").read_bytes() == second.with_suffix(".bin").read_bytes()


@pytest.fixture(scope="module", name="plain")
def _plain(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(convolutions(), images, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("rung", INT8.rungs, ids=lambda rung: f"{rung.calibration} {rung.options}")
def test_every_rung_makes_a_good_net_of_a_good_net(plain: Bench, rung: Any) -> None:
    name = f"{rung.calibration}{len(rung.options)}"
    got = answers(plain.make(name, int8(rung.calibration, **rung.options)), plain.evaluation)
    assert snr_db(plain.exact, got) > 20.0


def test_true_extremes_keep_more_than_the_mean_of_the_samples(plain: Bench) -> None:
    got = answers(plain.make("true", int8()), plain.evaluation)
    assert snr_db(plain.exact, got) > snr_db(plain.exact, plain.by_hand()) + 5.0


def test_seven_bit_weights_where_eight_saturate(plain: Bench) -> None:
    for reduce_range, most in ((True, 64), (False, 127)):
        made = plain.make(f"range{most}", int8(reduce_range=reduce_range))
        stored_weights = [
            node.data
            for node in ov.Core().read_model(str(made)).get_ops()
            if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8
        ]
        assert len(stored_weights) == 4
        assert max(int(np.abs(w.astype(int)).max()) for w in stored_weights) in (most, most + 1)


def test_a_transformer_with_outlier_channels_is_rescued_at_once(plain: Bench, tmp_path: Path) -> None:
    assert not has_attention(plain.model)
    bench = Bench(attention(60.0), tokens, tmp_path)
    assert has_attention(bench.model)
    assert snr_db(bench.exact, bench.by_hand()) < 20.0
    made = bench.make("w", int8())
    assert snr_db(bench.exact, answers(made, bench.evaluation)) > 25.0
    ratios = INT8.layers(bench.source, int8(), made, bench.calibration)
    assert len(ratios) == 7
    assert min(ratios.values()) > 20.0


def test_an_unknown_method_is_told(plain: Bench) -> None:
    with pytest.raises(ConversionError, match=r"unknown calibration 'magic'.*minmax"):
        plain.make("magic", int8("magic"))


def test_boxes_and_scores_and_what_reads_a_joint(tmp_path: Path) -> None:
    for name, net in (("boxes", boxes_and_scores()), ("joint", joint_before_a_layer())):
        (tmp_path / name).mkdir()
        bench = Bench(net, images, tmp_path / name)
        assert len(mixed_joints(bench.model, bench.calibration)) >= 1
        got = answers(bench.make("o", int8()), bench.evaluation)
        exact = bench.exact
        if name == "boxes":
            got, exact = (side.reshape(-1, 6, 256)[:, 4:] for side in (got, exact))
        assert snr_db(exact, got) > 25.0, name
    (tmp_path / "alike").mkdir()
    random = np.random.default_rng(0)
    weights = {f"k{i}": random.standard_normal((4, 3, 1, 1)).astype(np.float32) for i in range(2)}
    nodes = [node("Conv", "x k0", "a"), node("Conv", "x k1", "b"), node("Concat", "a b", "y", axis=1)]
    net = graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 8, 16, 16]}, weights)
    alike = Bench(net, images, tmp_path / "alike")
    assert mixed_joints(alike.model, alike.calibration) == []


def test_a_depthwise_net_with_a_nearly_dead_channel_is_rescued(tmp_path: Path) -> None:
    bench = Bench(depthwise(), images, tmp_path)
    assert snr_db(bench.exact, answers(bench.make("o", int8()), bench.evaluation)) > 25.0


def test_weights_alone_are_a_quarter_and_nearly_exact(tmp_path: Path) -> None:
    for name, net, data in (("c", convolutions(), images), ("t", attention(1.0), tokens)):
        (tmp_path / name).mkdir()
        bench = Bench(net, data, tmp_path / name)
        made = [
            Path(make(OpenVinoToWeights(), bench.source, tmp_path / name / part).path) for part in ("o", "p")
        ]
        assert snr_db(bench.exact, answers(made[0], bench.evaluation)) > 30.0
        sizes = [path.with_suffix(".bin").stat().st_size for path in (made[0], bench.source.path)]
        assert sizes[0] < 0.4 * sizes[1]
        assert made[0].read_bytes() == made[1].read_bytes()


def test_zero_points_hold_weights_that_lie_on_one_side(tmp_path: Path) -> None:
    """Weights between 1 and 2: around zero, half of the integers stand for values that no weight has."""
    random = np.random.default_rng(3)
    weights = {"k": (1.0 + random.random((16, 3, 3, 3))).astype(np.float32)}
    net = graph([node("Conv", "x k", "y")], {"x": ["n", 3, 16, 16]}, {"y": ["n", 16, 14, 14]}, weights)
    bench = Bench(net, images, tmp_path)
    ratios = [
        snr_db(
            bench.exact,
            answers(make(OpenVinoToWeights(), bench.source, tmp_path / name, recipe).path, bench.evaluation),
        )
        for name, recipe in (
            ("plain", Recipe(("x",), "int8-dynamic")),
            ("zero", Recipe(("x",), "int8-dynamic", options={"zero_points": True})),
        )
    ]
    assert ratios[1] > ratios[0] + 4.0  # one bit more is 6 dB


def test_a_net_without_weights_has_none_to_store(tmp_path: Path) -> None:
    net = graph([node("Relu", "x", "y")], {"x": ["n", 3, 16, 16]}, {"y": ["n", 3, 16, 16]}, {})
    bench = Bench(net, images, tmp_path)
    with pytest.raises(ConversionError):
        make(OpenVinoToWeights(), bench.source, tmp_path / "o")


def test_a_polynomial_and_a_statistic_stay_float_and_a_residual_between_convolutions_does_not(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"k{i}": random.standard_normal((4, 4, 1, 1)).astype(np.float32) for i in range(3)
    }
    weights |= {"k0": random.standard_normal((4, 3, 1, 1)).astype(np.float32)}
    nodes = [
        node("Conv", "x k0", "a"),
        node("Conv", "a k1", "b"),
        node("Add", "a b", "inner"),
        node("Conv", "inner k2", "c"),
        node("Mul", "c c", "square"),
        node("Mul", "square c", "cube"),
        node("ReduceMean", "cube", "mean", axes=[1]),
        node("Sub", "cube mean", "y"),
    ]
    net = graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 4, 16, 16]}, weights)
    bench = Bench(net, images, tmp_path)
    kinds = sorted(name.partition("_")[0] for name in worthless(bench.model))
    assert kinds == ["Multiply", "Multiply", "ReduceMean", "Subtract"]
    assert snr_db(bench.exact, answers(bench.make("o", int8()), bench.evaluation)) > 20.0


def test_a_square_behind_an_integer_layer_keeps_both_of_its_scales(tmp_path: Path) -> None:
    """The plugin loses one of them, and NNCF's own model answers nearly nothing."""
    weights = {"k": np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)}
    nodes = [node("Conv", "x k", "c"), node("Mul", "c c", "y")]
    bench = Bench(graph(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 4, 16, 16]}, weights), images, tmp_path)
    assert snr_db(bench.exact, answers(bench.make("o", int8()), bench.evaluation)) > 25.0

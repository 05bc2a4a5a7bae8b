"""scikit-learn to ONNX, by skl2onnx, with every threshold where float64 has it.

ONNX Runtime compares float32 with float32; scikit-learn compares with float64 thresholds. For a float32 input x and
any threshold t, x ≤ t holds just where x ≤ t rounded *down* to float32 does. So thresholds over plain inputs are
rounded down (skl2onnx does that for trees; here it is done for gradient boosting over histograms). Where something
is computed before the trees, it is computed in float64 and rounded as scikit-learn rounds it. What is made is then
compared with scikit-learn on rows that lie on the thresholds and beside them; a single difference is a refusal.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.canonical import canonicalise
from edgekit.converters.base import Converter, SourceModel
from edgekit.converters.onnx_static import save_float
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe
from edgekit.sources.sklearn import SklearnSource, parts, plausible_rows
from edgekit.streams import Samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SklearnToOnnx", "boundary_rows", "floor32"]

#: From this opset on there is ai.onnx.ml 3.
_ML3 = 16
#: Estimators that round their whole input to float32.
_TREES = (
    "DecisionTree", "ExtraTree", "RandomForest", "GradientBoosting", "AdaBoost", "Bagging",
)  # fmt: skip
_HISTOGRAMS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
#: Transformers that never jump: float32 is near enough where no tree follows.
_SMOOTH = (
    "StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "PCA", "TruncatedSVD", "Normalizer",
    "PolynomialFeatures", "SimpleImputer",
)  # fmt: skip
_MOST_ROWS = 4096
#: Largest difference of a probability, and of a regression by its range, that rounding of sums explains.
_TOLERANCE = 1e-5


class SklearnToOnnx(Converter):
    """ONNX with trees and support vectors as ONNX's own operators (`ai.onnx.ml`); probabilities are one tensor."""

    sources = ("sklearn",)
    format = "onnx"
    precisions = ("fp32",)
    environment = "sklearn"
    needs = ("sklearn", "skl2onnx", "skops", "onnx", "onnxruntime")
    tools = ("scikit-learn", "skl2onnx", "onnx")

    def make(
        self,
        source: SourceModel,
        recipe: Recipe,
        calibration: Samples,  # noqa: ARG002
        folder: Path,
    ) -> Path:
        """Write one `.onnx` in canonical form."""
        import onnx

        opened = SklearnSource(source.path, source.options)
        model = _convert(opened, int(recipe.options["opset"]))
        names = [spec.name for spec in opened.outputs]
        del model.graph.output[len(names) :]  # scores of a classifier that has no probabilities
        _as_float32(model)
        versions = {
            opset.domain: opset.version for opset in model.opset_import
        }  # skl2onnx may name one twice
        del model.opset_import[:]
        model.opset_import.extend(onnx.helper.make_opsetid(*each) for each in versions.items())
        canonical = canonicalise(model, inputs=["input"], outputs=names, ir_version=int(recipe.options["ir"]))
        _check_boundaries(opened, canonical)
        return save_float(canonical, source, recipe, folder)


def _convert(source: SklearnSource, opset: int) -> Any:
    """Return the estimator in ONNX, its outputs still under skl2onnx's names."""
    import numpy as np
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from skl2onnx.sklapi import CastTransformer
    from sklearn.pipeline import make_pipeline

    steps = _steps(source.estimator)
    final = _prepared(steps[-1], source.classes, plain=len(steps) == 1)
    wide = _needs_float64(steps)
    back = [CastTransformer(dtype=np.float32)] if wide and _has_trees(final) else []
    steps = [*steps[:-1], *back, final]
    whole = make_pipeline(*steps) if len(steps) > 1 else final
    # an entry for every estimator: where skl2onnx finds none, it sets zipmap in a pipeline, even where nothing takes it
    options: dict[int, dict[str, bool]] = {id(final): {"zipmap": False} if _has_zipmap(final) else {}}
    with warnings.catch_warnings(), _whole_numbers():
        warnings.simplefilter("ignore")
        return skl2onnx.to_onnx(
            whole,
            initial_types=[
                ("input", (DoubleTensorType if wide else FloatTensorType)([None, source.inputs[0].shape[1]]))
            ],
            options=options,
            target_opset={"": opset, "ai.onnx.ml": 3 if opset >= _ML3 else 2},
        )


def _steps(estimator: Any) -> list[Any]:
    """Return a pipeline's steps, those of pipelines in it too, or the estimator alone."""
    if not hasattr(estimator, "steps"):
        return [estimator]
    return [s for _, step in estimator.steps if step not in (None, "passthrough") for s in _steps(step)]


def _needs_float64(steps: list[Any]) -> bool:
    """Tell whether float32 could change an answer by more than its rounding."""
    *before, final = steps
    name = type(final).__name__
    jumps = any(type(step).__name__ not in _SMOOTH for step in before)
    return name.startswith("KNeighbors") or (bool(before) and (_has_trees(final) or jumps))


def _has_trees(final: Any) -> bool:
    return type(final).__name__.startswith(_TREES) or type(final).__name__ in _HISTOGRAMS


def _prepared(final: Any, classes: Any, *, plain: bool) -> Any:
    """Return a copy of the last step whose classes are their numbers, and whose thresholds are float32."""
    import numpy as np

    made = copy.deepcopy(final)
    if classes is not None and not np.array_equal(classes, np.arange(len(classes))):
        try:
            made.classes_ = np.arange(len(classes))
        except AttributeError as error:
            raise ConversionError(
                f"the classes of a {type(final).__name__} cannot be numbered",
                hint="Fit it on labels 0, 1, 2, ….",
            ) from error
    for part in parts(made) if plain or type(final).__name__ in _HISTOGRAMS else ():
        if type(part).__name__ == "TreePredictor":
            part.nodes = part.nodes.copy()
            part.nodes["num_threshold"] = floor32(part.nodes["num_threshold"])
    return made


def floor32(values: np.ndarray) -> np.ndarray:
    """Return, for each float64, the largest float32 that is not above it."""
    import numpy as np

    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
        below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) <= values, near, below)


def _has_zipmap(estimator: Any) -> bool:
    """Tell whether skl2onnx would give a classifier's probabilities as a list of maps, which no runtime here takes."""
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common._registration import get_converter

    alias = sklearn_operator_name_map.get(type(estimator))
    return alias is not None and "zipmap" in (get_converter(alias).get_allowed_options() or {})


@contextmanager
def _whole_numbers() -> Iterator[None]:
    """Let skl2onnx 1.20 convert gradient boosting over histograms: it gives `False` where onnx takes whole numbers."""
    from skl2onnx.common import tree_ensemble

    original = tree_ensemble.add_node

    def add_node(*args: Any, nodes_missing_value_tracks_true: Any = 0, **named: Any) -> Any:
        return original(*args, nodes_missing_value_tracks_true=int(nodes_missing_value_tracks_true), **named)

    tree_ensemble.add_node = add_node
    try:
        yield
    finally:
        tree_ensemble.add_node = original


def _as_float32(model: Any) -> None:
    """Take float32 where the graph takes float64, and round its float64 outputs, in the graph."""
    import onnx

    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == double:
            wide = value.name + "_float64"
            for node in model.graph.node:
                node.input[:] = [wide if name == value.name else name for name in node.input]
            model.graph.node.append(onnx.helper.make_node("Cast", [value.name], [wide], to=double))
            value.type.tensor_type.elem_type = single
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == double:
            wide, value.name = value.name, value.name + "_float32"
            model.graph.node.append(onnx.helper.make_node("Cast", [wide], [value.name], to=single))
            value.type.tensor_type.elem_type = single


def boundary_rows(source: SklearnSource, seed: int = 0) -> np.ndarray:
    """Return inputs on the thresholds of an estimator's trees and one float32 beside them.

    Each row has one feature on a threshold (rounded either way to float32, and the next one beyond), and every other
    feature on some threshold of its own. Where scalers stand before the trees, rows are taken back through them.

    Returns:
        float32 [N, F], N at most 4096; without trees, or behind steps that cannot be undone, 1024 plausible rows.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    *before, final = _steps(source.estimator)
    features = int(getattr(final, "n_features_in_", source.inputs[0].shape[1]))
    pairs = _thresholds(final)
    if not len(pairs):
        return plausible_rows(source.estimator, source.inputs[0].shape[1], 1024, seed)
    chosen = pairs[random.permutation(len(pairs))[: _MOST_ROWS // 4]]
    pools = [pairs[pairs[:, 0] == f, 1] for f in range(features)]
    rows = np.stack(
        [
            random.choice(pool, len(chosen)) if len(pool) else random.normal(size=len(chosen))
            for pool in pools
        ],
        axis=1,
    )
    numbers = chosen[:, 0].astype(int)
    rows[np.arange(len(rows)), numbers] = chosen[:, 1]
    back = _taken_back(before, rows)
    if back is None:
        return plausible_rows(source.estimator, source.inputs[0].shape[1], 1024, seed)
    down = floor32(back)
    up = np.nextafter(down, np.float32(np.inf))
    beside = (down, up, np.nextafter(down, np.float32(-np.inf)), back.astype(np.float32))
    return np.concatenate(beside)


def _thresholds(final: Any) -> np.ndarray:
    """Return every (feature, threshold) of an estimator's trees, float64 [N, 2]."""
    import numpy as np

    found = [np.empty((0, 2))]
    for part in parts(final):
        if type(part).__name__ == "Tree":
            inner = part.children_left != -1
            found.append(np.stack([part.feature[inner], part.threshold[inner]], axis=1))
        elif type(part).__name__ == "TreePredictor":
            inner = part.nodes[part.nodes["is_leaf"] == 0]
            found.append(np.stack([inner["feature_idx"], inner["num_threshold"]], axis=1))
    pairs = np.concatenate(found)
    return np.unique(pairs[np.isfinite(pairs).all(axis=1)], axis=0)


def _taken_back(before: list[Any], rows: np.ndarray) -> np.ndarray | None:
    """Return the inputs that transformers make into `rows`; None where one cannot be undone."""
    for step in reversed(before):
        if not hasattr(step, "inverse_transform"):
            return None
        rows = step.inverse_transform(rows)
    return rows


def _check_boundaries(source: SklearnSource, model: Any) -> None:
    """Refuse a model that answers otherwise than scikit-learn on rows at the thresholds.

    Raises:
        ConversionError: It does; says on how many rows.
    """
    import numpy as np
    import onnxruntime as ort

    quiet = ort.SessionOptions()
    quiet.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
    rows = boundary_rows(source)
    expected = source.run({"input": rows})
    names = [spec.name for spec in source.outputs]
    got = dict(zip(names, session.run(names, {"input": rows}), strict=True))
    wrong = np.zeros(len(rows), bool)
    for name in names[-1:]:  # the label follows from probabilities; where they tie, either is right
        wide, other = (
            expected[name].astype(np.float64),
            got[name].astype(np.float64).reshape(expected[name].shape),
        )
        span = max(float(np.ptp(wide)), 1e-12)
        wrong |= (np.abs(wide - other) > _TOLERANCE * span).reshape(len(rows), -1).any(axis=1)
    if wrong.any():
        raise ConversionError(
            f"{int(wrong.sum())} of {len(rows)} rows on the thresholds of its trees are answered otherwise in ONNX",
            hint="Put no step before the trees: they need no scaling.",
        )

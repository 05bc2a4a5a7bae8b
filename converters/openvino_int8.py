"""OpenVINO IR float32 to static int8, by NNCF's post-training quantization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.converters.base import Converted, Converter, SourceModel
from edgekit.converters.onnx_openvino import save_ir
from edgekit.errors import ConversionError
from edgekit.manifest import Recipe

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpenVinoToInt8"]


class OpenVinoToInt8(Converter):
    """FakeQuantize by NNCF, for the device the recipe names (`device`: `CPU`, `NPU`, …)."""

    sources = ("openvino",)
    format = "openvino"
    precisions = ("int8",)
    environment = "onnx"
    needs = ("openvino", "nncf")

    def convert(
        self,
        source: SourceModel,
        recipes: Sequence[Recipe],
        calibration: Mapping[str, np.ndarray] | None,
        out: Path,
    ) -> Iterator[Converted]:
        """Make the one int8 IR."""
        import nncf
        import openvino as ov

        if calibration is None:
            raise ConversionError("openvino-int8 needs calibration data", hint="Give --calibration.")
        n = len(next(iter(calibration.values())))
        samples = [{name: array[i : i + 1] for name, array in calibration.items()} for i in range(n)]
        for recipe in recipes:
            try:
                model = nncf.quantize(
                    ov.Core().read_model(str(source.path)),
                    nncf.Dataset(samples),
                    subset_size=n,
                    target_device=nncf.TargetDevice[str(recipe.options["device"])],
                    fast_bias_correction=bool(recipe.options["fast_bias_correction"]),
                )
            except Exception as error:  # NNCF raises its own and OpenVINO's errors, without a shared base
                raise ConversionError(f"NNCF cannot make openvino-int8: {str(error)[:300]}") from error
            path, files = save_ir(model, out / f"openvino-{recipe.precision}", half=False)
            yield Converted(
                path=path,
                files=files,
                inputs=source.inputs,
                outputs=source.outputs,
                tools={name: version(name) for name in ("openvino", "nncf")},
            )

"""Where compiled engines are kept on a device, and under which key: an engine fits one GPU, one TensorRT, one JetPack.

TensorRT and the NPU's compiler take seconds to minutes for a model. What they make is kept in the state folder under
a key of everything it depends on, so that it is made when a model is opened for the first time, before the daemon is
ready, and never again; and never taken for another device, driver or model (an engine of before a JetPack upgrade
crashes or is refused). The engines of a model's former keys are removed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edgekit.runtimes.base import ModelFiles
from edgekit.state import state_root
from edgekit.tensors import TensorSpec

__all__ = ["compiles", "engine_key", "engine_options", "shape_profiles", "system_versions"]

Option = str | int | float | bool

_TENSORRT, _VITIS = "TensorrtExecutionProvider", "VitisAIExecutionProvider"
#: Devices of OpenVINO whose compiler's work is worth a place on the disk.
_COMPILED = ("NPU", "GPU")
#: Chip by its device-tree name to the GPU's compute capability (NVIDIA CUDA C++ Programming Guide, "Compute
#: Capabilities"; https://developer.nvidia.com/cuda-gpus).
_SM = {
    "nvidia,tegra210": "5.3",
    "nvidia,tegra186": "6.2",
    "nvidia,tegra194": "7.2",
    "nvidia,tegra234": "8.7",
    "nvidia,tegra264": "11.0",
}
#: The batch that a free axis is compiled for, besides 1 and the most.
_OPTIMAL_BATCH, _MOST_BATCH = 1, 32


def system_versions(root: str = "/") -> dict[str, str]:
    """Return what of the system an engine depends on: chip, JetPack, TensorRT, CUDA and drivers, as far as they are there.

    Args:
        root: Where /etc, /proc, /usr and /sys are looked for.
    """
    base = Path(root)
    chips = _text(base / "proc/device-tree/compatible").split("\0")
    found = {
        "sm": next((_SM[chip] for chip in chips if chip in _SM), ""),
        "l4t": ".".join(_found(r"R(\d+) \(release\), REVISION: ([\d.]+)", base / "etc/nv_tegra_release")),
        "tensorrt": _newest(base, "usr/lib/*/libnvinfer.so.*"),
        "cuda": _cuda(base),
        "nvidia": ".".join(_found(r"Kernel Module\s+([\d.]+)", base / "proc/driver/nvidia/version")),
        "vart": _newest(base, "usr/lib/libvart-runner.so.*")
        or _newest(base, "usr/lib/*/libvart-runner.so.*"),
        "npu": _newest(base, "usr/lib/*/libze_intel_npu.so.*"),
        "intel_vpu": _text(base / "sys/module/intel_vpu/version").strip(),
    }
    return {name: version for name, version in found.items() if version}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _found(pattern: str, path: Path) -> tuple[str, ...]:
    """Return the groups of the first match in a file."""
    match = re.search(pattern, _text(path))
    return match.groups() if match else ()


def _newest(base: Path, pattern: str) -> str:
    """Return the longest version among a library's names: `10.3.0` of `libnvinfer.so.10.3.0`."""
    versions = [path.name.partition(".so.")[2] for path in base.glob(pattern)]
    return max(versions, key=lambda text: (text.count("."), text), default="")


def _cuda(base: Path) -> str:
    try:
        told = json.loads(_text(base / "usr/local/cuda/version.json"))
        return str(told["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def engine_key(
    model_sha256: str, runtime: str, options: Mapping[str, Option], system: Mapping[str, str]
) -> str:
    """Return the name of an engine's folder: the model's, then one for everything else that it depends on.

    Args:
        model_sha256: Of the artifact's file.
        runtime: Its name and version.
        options: Of runtime and provider.
        system: What `system_versions` returned.
    """
    rest = json.dumps([runtime, dict(options), dict(system)], sort_keys=True)
    return f"{model_sha256[:16]}-{hashlib.sha256(rest.encode()).hexdigest()[:16]}"


def shape_profiles(files: ModelFiles) -> dict[str, str]:
    """Return TensorRT's shape profiles of an artifact with a free batch; none where nothing is free.

    Without them TensorRT builds another engine for each new shape, while a request waits.

    Args:
        files: The artifact. An axis other than the batch that is free gives no profile: no bound is known.
    """
    free = [spec for spec in files.inputs if -1 in spec.shape]
    if not free or any(-1 in spec.shape[1:] for spec in free):
        return {}
    return {
        f"trt_profile_{name}_shapes": ",".join(_shape(spec, files, batch) for spec in files.inputs)
        for name, batch in (("min", 1), ("opt", _OPTIMAL_BATCH), ("max", _MOST_BATCH))
    }


def _shape(spec: TensorSpec, files: ModelFiles, batch: int) -> str:
    sizes = [batch if size == -1 else size for size in spec.shape]
    return f"{files.input_names.get(spec.name, spec.name)}:{'x'.join(map(str, sizes))}"


def compiles(providers: Sequence[str]) -> bool:
    """Tell whether a plan's first provider makes engines that are worth keeping."""
    return bool(providers) and (providers[0] in (_TENSORRT, _VITIS) or providers[0].startswith(_COMPILED))


def engine_options(
    files: ModelFiles,
    model_sha256: str,
    runtime: str,
    providers: Sequence[str],
    options: Mapping[str, Option],
    *,
    root: str = "/",
    folder: Path | None = None,
) -> dict[str, Option]:
    """Return the options that make a provider keep its engines, where the first one compiles any; makes the folder.

    Args:
        files: The artifact.
        model_sha256: Of its file.
        runtime: Name and version, such as `onnxruntime 1.31.1`.
        providers: Of the plan.
        options: Of the plan.
        root: Where the system's versions are looked for.
        folder: Where engines are kept; None for `engines` in the state folder.

    Returns:
        Further options; none where nothing is compiled, or nothing can be written.
    """
    if not compiles(providers):
        return {}
    engines = folder or state_root() / "engines"
    place = engines / engine_key(model_sha256, runtime, options, system_versions(root))
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    _remove_former(place)
    if providers[0] == _VITIS:  # by default under /tmp, where a reboot takes it
        return {"vitisai_cacheDir": str(place.parent), "vitisai_cacheKey": place.name}
    if providers[0] != _TENSORRT:
        return {"CACHE_DIR": str(place)}
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(place),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(place),
        **shape_profiles(files),
    }


def _remove_former(place: Path) -> None:
    """Remove the same model's engines of another driver, JetPack or runtime: they will never fit again."""
    model = place.name.partition("-")[0]
    for other in place.parent.glob(f"{model}-*"):
        if other != place:
            with suppress(OSError):
                shutil.rmtree(other)

"""Reading images as a model takes them: how is data in the bundle (`preprocess`), never a guess."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekit.errors import UnavailableError, UsageError
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "SUFFIXES",
    "ImageFolder",
    "ImageStep",
    "image_step",
    "read_image",
    "read_image_folder",
    "read_preprocess",
]

#: Files that are read as images; others in a class folder are refused by name.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_CHANNELS = {"grayscale": 1, "rgb": 3}
_MODES = {"grayscale": "L", "rgb": "RGB"}
#: Pixel formats of eight bits for each channel; wider ones would be cut without a word.
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_EXAMPLE = 'preprocess = [{ kind = "image", input = "NAME", scale = 0.00392156862745098 }] (pixels to [0, 1])'
_FIELDS = (
    'kind = "image", input = "NAME", color = "rgb" or "grayscale", resize = "bilinear", scale = NUMBER, '
    "mean = [NUMBER, …], std = [NUMBER, …]"
)


class ImageStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an image becomes an input: (pixel * scale - mean) / std.

    Attributes:
        kind: `image`.
        input: The input's name.
        color: `rgb` or `grayscale`; empty to go by the input's channels.
        resize: `bilinear`; None to refuse an image of another size.
        scale: What a pixel (0 to 255) is multiplied by; must be given for a float input.
        mean: Subtracted after scaling: one number, or one for each channel.
        std: Divided by at the end: one number, or one for each channel.
    """

    kind: str
    input: str
    color: str = ""
    resize: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, read.

    Attributes:
        input: The input that they are for.
        pixels: [N, …] as that input takes them.
        labels: int64 [N], the class of each; None where the images lie in no class folders.
        class_names: Names of the classes.
    """

    input: str
    pixels: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Frame:
    """The picture that an input wants: sizes in pixels, and where its channels stand in a sample's shape."""

    height: int
    width: int
    channels: int
    axis: int | None


def read_preprocess(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """Read the preprocessing from a TOML file with a table `[[preprocess]]` for each step.

    Raises:
        UsageError: It is not there, is no TOML, or holds something else.
    """
    source = Path(path)
    try:
        tables = _load_toml(source)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read --preprocess {source}: {error}") from error
    steps = tables.get("preprocess")
    if set(tables) != {"preprocess"} or not isinstance(steps, list) or not steps:
        raise UsageError(
            f"--preprocess {source} holds no steps",
            got=", ".join(sorted(tables)) or "nothing",
            expected=_EXAMPLE,
        )
    for step in steps:
        if not isinstance(step, dict) or step.get("kind") != "image" or "input" not in step:
            raise UsageError(f"--preprocess {source} has an unknown step", got=step, expected=_EXAMPLE)
        _as_step(step)
    return tuple(steps)


def _load_toml(source: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        import tomli as toml
    return toml.loads(source.read_text(encoding="utf-8"))


def _as_step(step: dict[str, Any]) -> ImageStep:
    try:
        return msgspec.convert(step, ImageStep)
    except msgspec.ValidationError as error:
        raise UsageError(f"preprocess of input {step.get('input')!r}: {error}", expected=_FIELDS) from error


def image_step(spec: TensorSpec, preprocess: Sequence[dict[str, Any]]) -> ImageStep:
    """Return how images become the input `spec`, checked.

    Raises:
        UsageError: The preprocessing is malformed, or a float input has no scale.
    """
    steps = [
        step
        for step in preprocess
        if step.get("kind") == "image" and step.get("input", spec.name) == spec.name
    ]
    if len(steps) > 1:
        raise UsageError(f"preprocess has {len(steps)} image steps for input {spec.name!r}", expected="one")
    step = _as_step({"kind": "image", "input": spec.name} | (steps[0] if steps else {}))
    if step.color not in ("", *_CHANNELS) or step.resize not in (None, "bilinear"):
        raise UsageError(
            f"preprocess of input {spec.name!r} is unknown",
            got=f"color {step.color!r}, resize {step.resize!r}",
            expected="color rgb or grayscale, resize bilinear or null",
        )
    if spec.dtype.startswith("float") and step.scale is None:
        raise UsageError(
            f"input {spec.name!r} is {spec.dtype} and nothing says how pixels are scaled",
            hint=f"Convert with --preprocess FILE that says: {_EXAMPLE.replace('NAME', spec.name)}.",
        )
    if not spec.dtype.startswith("float") and (step.scale not in (None, 1) or step.mean or step.std):
        raise UsageError(f"input {spec.name!r} is {spec.dtype}: its pixels cannot be scaled")
    return step


def _frame(spec: TensorSpec) -> _Frame:
    """Return the picture that the input wants, from its layout, else from where 1 or 3 channels can stand."""
    shape = spec.shape[1:]
    layout = spec.layout.upper()
    if len(shape) == 2:
        frame = _Frame(shape[0], shape[1], 1, None)
    elif len(shape) == 3 and (
        layout == "NHWC" or (not layout and shape[2] in (1, 3) and shape[0] not in (1, 3))
    ):
        frame = _Frame(shape[0], shape[1], shape[2], 2)
    elif len(shape) == 3 and (
        layout == "NCHW" or (not layout and shape[0] in (1, 3) and shape[2] not in (1, 3))
    ):
        frame = _Frame(shape[1], shape[2], shape[0], 0)
    else:
        frame = _Frame(-1, -1, -1, None)
    if frame.channels not in (1, 3) or frame.height < 1 or frame.width < 1:
        raise UsageError(
            f"input {spec.name!r} is no picture of a known size",
            got=f"{list(spec.shape)} {spec.layout}".strip(),
            expected="[N, H, W, C] or [N, C, H, W] with 1 or 3 channels",
            hint="Give an .npz.",
        )
    return frame


def read_image(
    path: str | os.PathLike[str], spec: TensorSpec, preprocess: Sequence[dict[str, Any]]
) -> np.ndarray:
    """Read one image file as the model takes it.

    Args:
        path: The file.
        spec: The input.
        preprocess: The bundle's preprocessing.

    Returns:
        [1, …] with the dtype of `spec`.

    Raises:
        UsageError: It is no image, or not of the size that the model takes.
        UnavailableError: Pillow is not installed.
    """
    step, frame = image_step(spec, preprocess), _frame(spec)
    return _convert(_decode(Path(path), step, frame, spec), step, frame, spec)[None]


def _decode(path: Path, step: ImageStep, frame: _Frame, spec: TensorSpec) -> np.ndarray:
    """Return the picture's pixels, uint8 [H, W, C], RGB or gray."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UnavailableError(
            "images need Pillow", hint="Run: pip install 'edgekit-deploy[image]'."
        ) from error
    color = step.color or ("grayscale" if frame.channels == 1 else "rgb")
    if _CHANNELS[color] != frame.channels:
        raise UsageError(
            f"input {spec.name!r} has {frame.channels} channels", got=f"color {color!r} in preprocess"
        )
    if path.exists() and not path.is_file():  # to open a pipe would wait for whoever writes to it
        raise UsageError(f"image {path} is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                pixels = np.asarray(_sized(image, path, step, frame).convert(_MODES[color]), np.uint8)
    except FileNotFoundError as error:
        raise UsageError(f"no image at {path}") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        raise UsageError(f"image {path} cannot be read: {error}") from error
    except Image.DecompressionBombWarning as error:
        raise UsageError(f"image {path} is too big to be meant: {error}") from error
    if (frame.height, frame.width) != pixels.shape[:2]:
        from_mode = Image.fromarray(pixels).resize((frame.width, frame.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(from_mode, np.uint8)
    return pixels.reshape(frame.height, frame.width, frame.channels)


def _sized(image: Image, path: Path, step: ImageStep, frame: _Frame) -> Image:
    """Return the image if its size and pixel format will do; nothing has been decoded yet."""
    if image.mode not in _EIGHT_BIT:
        raise UsageError(
            f"image {path} has pixels of the format {image.mode}", expected="8 bits for each channel"
        )
    if image.size != (frame.width, frame.height) and step.resize is None:
        raise UsageError(
            f"image {path} has the wrong size",
            got=f"{image.width} x {image.height}",
            expected=f"{frame.width} x {frame.height}",
            hint='Resize it, or convert with resize = "bilinear" in --preprocess if the model was trained so.',
        )
    return image


def _convert(pixels: np.ndarray, step: ImageStep, frame: _Frame, spec: TensorSpec) -> np.ndarray:
    """Return the sample: scaled, normalised, in the input's layout and dtype."""
    if spec.dtype.startswith("float"):
        values = pixels.astype(np.float64) * (1.0 if step.scale is None else step.scale)
        values = values - _per_channel(step.mean, frame, 0.0, spec)
        values = values / _per_channel(step.std, frame, 1.0, spec)
    else:
        values = pixels
    if frame.axis is None:
        values = values[:, :, 0]
    elif frame.axis == 0:
        values = values.transpose(2, 0, 1)
    if spec.dtype == "int8":
        raise UsageError(f"input {spec.name!r} is int8, pixels are not", hint="Give an .npz.")
    return np.ascontiguousarray(values.astype(spec.dtype))


def _per_channel(numbers: Sequence[float], frame: _Frame, default: float, spec: TensorSpec) -> np.ndarray:
    values = np.array(numbers or (default,), np.float64)
    if (
        len(values) not in (1, frame.channels)
        or not np.isfinite(values).all()
        or (default == 1.0 and not values.all())
    ):
        raise UsageError(
            f"preprocess of input {spec.name!r}: mean and std do not fit", got=list(numbers),
            expected=f"1 or {frame.channels} finite numbers, std not 0",
        )  # fmt: skip
    return values


def read_image_folder(
    folder: Path,
    inputs: Sequence[TensorSpec],
    preprocess: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    what: str,
) -> ImageFolder:
    """Read a folder of class folders of images; or of images alone, which then have no labels.

    Args:
        folder: The folder.
        inputs: What the model takes: one picture.
        preprocess: The bundle's preprocessing.
        class_names: The model's class names; empty to take the folders' names in alphabetical order, as Keras
            and torchvision do.
        what: What to call the data in messages.
    """
    if len(inputs) != 1:
        raise UsageError(
            f"{what} {folder}: images are for a model with one input", got=len(inputs), hint="Give an .npz."
        )
    spec = inputs[0]
    step, frame = image_step(spec, preprocess), _frame(spec)
    groups = _image_files(folder, what)
    names = _class_order(sorted(name for name in groups if name), class_names, folder, what)
    files = [(path, name) for name in sorted(groups) for path in groups[name]]
    pixels = np.empty((len(files), *_sample_shape(frame)), spec.dtype)
    for index, (path, _) in enumerate(files):
        pixels[index] = _convert(_decode(path, step, frame, spec), step, frame, spec)
    labels = np.array([names.index(name) for _, name in files], np.int64) if names else None
    return ImageFolder(spec.name, pixels, labels, names)


def _sample_shape(frame: _Frame) -> tuple[int, ...]:
    if frame.axis is None:
        return frame.height, frame.width
    if frame.axis == 0:
        return frame.channels, frame.height, frame.width
    return frame.height, frame.width, frame.channels


def _image_files(folder: Path, what: str) -> dict[str, list[Path]]:
    """Return the image files by class folder, in order; under the empty name if they lie in none."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    loose = [path for path in visible if not path.is_dir()]
    if folders and loose:
        raise UsageError(f"{what} {folder} has files beside its class folders", got=loose[0].name)
    groups = {path.name: sorted(p for p in path.iterdir() if not p.name.startswith(".")) for path in folders}
    if loose:
        groups = {"": loose}
    for name, files in groups.items():
        wrong = [path for path in files if path.suffix.lower() not in SUFFIXES]
        if wrong or not files:
            raise UsageError(
                f"{what} {folder}: {wrong[0] if wrong else 'class folder ' + name} holds no image",
                expected="images: " + ", ".join(SUFFIXES),
            )
    if not groups:
        raise UsageError(f"{what} {folder} is empty", expected="images in class folders")
    return groups


def _class_order(found: list[str], class_names: Sequence[str], folder: Path, what: str) -> tuple[str, ...]:
    if not found:
        return ()
    if class_names:
        unknown = [name for name in found if name not in class_names]
        if unknown:
            raise UsageError(
                f"{what} {folder}: class folder {unknown[0]!r} is no class of the model",
                expected=", ".join(class_names),
            )
        return tuple(class_names)
    if all(name.isdecimal() for name in found) and found != sorted(found, key=int):
        raise UsageError(
            f"{what} {folder}: the order of the classes {', '.join(found)} is not clear",
            hint="Name the classes in the model's order with --labels.",
        )
    return tuple(found)

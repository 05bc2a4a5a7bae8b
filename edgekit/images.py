"""Pictures as a model takes them: decoded, coloured, cut, resized, scaled. How is data in the bundle, never a guess.

All but decoding a file is EdgeKit's own arithmetic, the same on every processor. On a device: numpy, and Pillow for
files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekit.errors import UnavailableError, UsageError
from edgekit.resize import FITS, METHODS, place, resize
from edgekit.tensors import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

#: Told the width, the height and what to call the picture; raises.
_RefuseSize = Callable[[int, int, str], None]

__all__ = [
    "EXAMPLE",
    "SUFFIXES",
    "ImageBinding",
    "ImageFiles",
    "ImageStep",
    "Picture",
    "find_images",
    "image_u8_binding",
]

#: Files that are read as images; others in a class folder are refused by name.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
#: What a `--preprocess` file for pictures looks like.
EXAMPLE = 'preprocess = [{ kind = "image", input = "NAME", scale = 0.00392156862745098 }] (pixels to [0, 1])'
_CHANNELS = {"grayscale": 1, "rgb": 3, "bgr": 3}
#: Pixel formats of eight bits for each channel; wider ones would be cut without a word.
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
#: Shares of red, green and blue in 65536ths: ITU-R BT.601, as Pillow rounds it.
_LUMA = (19595, 38470, 7471)
_LAYOUTS = ("NHWC", "NCHW")


class ImageStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="image"):
    """How a picture becomes an input: cut, resized, and (pixel · scale − mean) / std, in this order.

    Attributes:
        input: The input's name.
        color: `rgb`, `bgr` or `grayscale`; empty to go by the input's channels.
        crop: What is cut out of the picture before it is resized, in its pixels: [top, left, height, width].
        resize: `bilinear`, `nearest` or `area`; None to refuse a picture of another size. See `edgekit.resize`.
        antialias: For `bilinear`: whether a shrinking picture is averaged (Pillow, torchvision) or sampled (Keras).
        fit: How another proportion becomes the input's: `stretch`, `letterbox` or `center-crop`.
        shorter_side: For `center-crop`: what the shorter side becomes first, in pixels.
        fill: Brightness of the bars of `letterbox`, 0-255.
        scale: What a pixel (0 to 255) is multiplied by; must be given for a float input.
        mean: Subtracted after scaling: one number, or one for each channel.
        std: Divided by at the end: one number, or one for each channel.
        layout: `NHWC` or `NCHW`; empty to go by the input's shape.
        dtype: The input's; empty to go by the input.
    """

    input: str
    color: str = ""
    crop: tuple[int, int, int, int] | None = None
    resize: str | None = None
    antialias: bool = True
    fit: str = "stretch"
    shorter_side: int | None = None
    fill: int = 0
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class _Frame:
    """The picture that an input wants: sizes in pixels, and where its channels stand in a sample's shape."""

    height: int
    width: int
    channels: int
    axis: int | None


class Picture:
    """One input that is a picture, and how pictures become it; all that cannot fit is refused when it is made.

    Args:
        spec: The input.
        step: How; None where nobody said.

    Attributes:
        spec: The input.
        color: `rgb`, `bgr` or `grayscale`.

    Raises:
        UsageError: The input is no picture of a known size, or the step does not fit it.
    """

    def __init__(self, spec: TensorSpec, step: ImageStep | None = None) -> None:
        self.spec, self._step = spec, step or ImageStep(spec.name)
        _check_words(self._step)
        self._frame = _frame(spec, self._step.layout)
        self.color = self._step.color or ("grayscale" if self._frame.channels == 1 else "rgb")
        _check_numbers(self._step, spec, self._frame, self.color)

    @property
    def definition(self) -> tuple[TensorSpec, dict[str, Any]]:
        """What it is made of, as data: the input, and the step as `preprocess` has it."""
        return self.spec, msgspec.to_builtins(self._step)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self._frame.height, self._frame.width

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self._frame.channels

    @property
    def axis(self) -> int | None:
        """Where the channels stand in a sample's shape, without the batch; None where it has none."""
        return self._frame.axis

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Return the pixels of an image file, cut and resized: uint8 [H, W, C] of the input's size and colour.

        Raises:
            UsageError: It is no image, or not of the size that the model takes.
            UnavailableError: Pillow is not installed.
        """
        return self._fitted(_decode(Path(path), self._channels_of_file, self._refuse_size), str(path))

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels of a raw picture, cut and resized: uint8 [H, W, C] of the input's size and colour.

        Args:
            pixels: uint8 [H, W], gray, or [H, W, 3], RGB, 0-255.

        Raises:
            UsageError: It is no such picture, or not of the size that the model takes.
        """
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
            raise UsageError(
                f"a picture for input {self.spec.name!r} has the wrong shape or type",
                got=f"{pixels.dtype}{list(pixels.shape)}",
                expected="uint8[H, W, 3] in RGB, or uint8[H, W]",
            )
        flat = pixels[..., None] if pixels.ndim == 2 else pixels
        if flat.shape[2] == 3 and self.channels == 1:
            flat = _to_gray(flat)
        elif flat.shape[2] == 1 and self.channels == 3:
            flat = np.repeat(flat, 3, axis=2)
        self._refuse_size(flat.shape[1], flat.shape[0], "the picture")
        return self._fitted(flat, "the picture")

    def samples(self, pixels: np.ndarray) -> np.ndarray:
        """Return what the model takes, scaled, in its layout and dtype: [N, …].

        Args:
            pixels: uint8 [N, H, W, C], as `read` and `fit` give them.
        """
        found = self.scaled(pixels)
        if self.axis is None:
            return found[..., 0]
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2)) if self.axis == 0 else found

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """Return (pixel · scale − mean) / std in the input's dtype, [N, H, W, C], for uint8 [N, H, W, C]."""
        if self.table is None:
            return pixels.astype(self.spec.dtype)
        return look_up(self.table, pixels)

    @cached_property
    def table(self) -> np.ndarray | None:
        """What each byte becomes, in the input's dtype [C, 256]; None where pixels are not scaled."""
        if not self.spec.dtype.startswith("float"):
            return None
        if self._step.scale is None:
            raise UsageError(
                f"input {self.spec.name!r} is {self.spec.dtype} and nothing says how pixels are scaled",
                hint=f"Convert with --preprocess FILE that says: {EXAMPLE.replace('NAME', self.spec.name)}.",
            )
        values = np.arange(256, dtype=np.float64) * self._step.scale
        mean, std = (
            np.broadcast_to(np.array(numbers or (default,), np.float64), self.channels)[:, None]
            for numbers, default in ((self._step.mean, 0.0), (self._step.std, 1.0))
        )
        return ((values - mean) / std).astype(self.spec.dtype)

    @property
    def _channels_of_file(self) -> str:
        return "L" if self.channels == 1 else "RGB"

    def _refuse_size(self, width: int, height: int, what: str) -> None:
        """Refuse a picture that the step cannot bring to the input's size; nothing has been decoded yet."""
        crop, size = self._step.crop, (height, width)
        if crop is not None:
            top, left, rows, columns = crop
            if top + rows > height or left + columns > width:
                raise UsageError(
                    f"{what} is smaller than the crop",
                    got=f"{width} x {height}",
                    expected=f"at least {left + columns} x {top + rows}",
                )
            size = rows, columns
        if size != self.size and self._step.resize is None:
            raise UsageError(
                f"{what} has the wrong size",
                got=f"{size[1]} x {size[0]}",
                expected=f"{self.size[1]} x {self.size[0]}",
                hint='Resize it, or convert with resize = "bilinear" in --preprocess if the model was trained so.',
            )

    def _fitted(self, pixels: np.ndarray, what: str) -> np.ndarray:
        step = self._step
        if step.crop is not None:
            top, left, rows, columns = step.crop
            pixels = pixels[top : top + rows, left : left + columns]
        if pixels.shape[:2] != self.size:
            pixels = self._resized(pixels, what)
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        return np.ascontiguousarray(pixels)

    def _resized(self, pixels: np.ndarray, what: str) -> np.ndarray:
        step = self._step
        goal = place(pixels.shape[:2], self.size, step.fit, step.shorter_side)
        if goal.height * goal.width > _MOST_PIXELS:
            raise UsageError(f"{what} is too long and thin to be resized", got=list(pixels.shape[:2]))
        found = resize(pixels, goal.height, goal.width, str(step.resize), antialias=step.antialias)
        if goal.top >= 0 and goal.left >= 0:
            frame = np.full((*self.size, self.channels), step.fill, np.uint8)
            frame[goal.top : goal.top + goal.height, goal.left : goal.left + goal.width] = found
            return frame
        rows, columns = self.size
        return found[-goal.top : rows - goal.top, -goal.left : columns - goal.left]


#: What a picture may be resized to before it is cut, in pixels: a line of one pixel would become a huge plane.
_MOST_PIXELS = 1 << 26


def look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return each channel's bytes through its own row of a table.

    Args:
        table: Any dtype, [C, 256].
        pixels: uint8 [..., C].
    """
    found = np.empty(pixels.shape, table.dtype)
    for channel, row in enumerate(table):
        found[..., channel] = row[pixels[..., channel]]
    return found


def _check_words(step: ImageStep) -> None:
    known = (
        ("color", step.color, ("", *_CHANNELS)),
        ("resize", step.resize, (None, *METHODS)),
        ("fit", step.fit, FITS),
        ("layout", step.layout, ("", *_LAYOUTS)),
    )
    for name, got, expected in known:
        if got not in expected:
            raise UsageError(
                f"preprocess of input {step.input!r} is unknown: {name} {got!r}",
                expected=", ".join(word for word in expected if word),
            )


def _check_numbers(step: ImageStep, spec: TensorSpec, frame: _Frame, color: str) -> None:
    where = f"preprocess of input {spec.name!r}"
    if _CHANNELS[color] != frame.channels:
        raise UsageError(
            f"input {spec.name!r} has {frame.channels} channels", got=f"color {color!r} in preprocess"
        )
    if spec.dtype == "int8":
        raise UsageError(f"input {spec.name!r} is int8, pixels are not", hint="Give an .npz.")
    if spec.dtype == "bytes":
        raise UsageError(f"input {spec.name!r} is text, pixels are not")
    if step.dtype not in ("", spec.dtype):
        raise UsageError(f"{where} has the wrong dtype", got=step.dtype, expected=spec.dtype)
    if not spec.dtype.startswith("float") and (step.scale not in (None, 1) or step.mean or step.std):
        raise UsageError(f"input {spec.name!r} is {spec.dtype}: its pixels cannot be scaled")
    for numbers in (step.mean, step.std):
        if len(numbers) not in (0, 1, frame.channels) or not np.isfinite(numbers).all() or 0 in step.std:
            raise UsageError(
                f"{where}: mean and std do not fit",
                got=list(numbers),
                expected=f"1 or {frame.channels} finite numbers, std not 0",
            )
    if step.scale is not None and not np.isfinite(step.scale):
        raise UsageError(f"{where}: scale is {step.scale}", expected="a finite number")
    if step.crop is not None and (min(step.crop[:2]) < 0 or min(step.crop[2:]) < 1):
        raise UsageError(
            f"{where}: crop makes no sense", got=step.crop, expected="[top, left, height, width]"
        )
    _check_fit(step, frame, where)


def _check_fit(step: ImageStep, frame: _Frame, where: str) -> None:
    """Refuse what would be ignored, and what cannot be meant."""
    if not 0 <= step.fill <= 255:
        raise UsageError(f"{where}: fill is {step.fill}", expected="0 to 255")
    unheeded = (
        ("fit", step.fit != "stretch" and step.resize is None, 'resize = "bilinear"'),
        ("antialias", not step.antialias and step.resize != "bilinear", 'resize = "bilinear"'),
        ("fill", step.fill != 0 and step.fit != "letterbox", 'fit = "letterbox"'),
        ("shorter_side", step.shorter_side is not None and step.fit != "center-crop", 'fit = "center-crop"'),
    )
    for name, idle, needed in unheeded:
        if idle:
            raise UsageError(f"{where}: {name} means nothing without {needed}")
    if step.shorter_side is not None and step.shorter_side < max(frame.height, frame.width):
        raise UsageError(
            f"{where}: shorter_side is {step.shorter_side}",
            expected=f"at least {max(frame.height, frame.width)}, the input's longer side",
        )


def _frame(spec: TensorSpec, said: str) -> _Frame:
    """Return the picture that the input wants, from its layout, else from where 1 or 3 channels can stand."""
    shape, layout = spec.shape[1:], spec.layout.upper() or said
    if said and spec.layout and said != layout:
        raise UsageError(
            f"preprocess of input {spec.name!r} has the wrong layout", got=said, expected=spec.layout
        )
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
            got=f"{list(spec.shape)} {layout}".strip(),
            expected="[N, H, W, C] or [N, C, H, W] with 1 or 3 channels",
            hint="Give an .npz, or the layout in --preprocess.",
        )
    return frame


def _to_gray(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness, uint8 [H, W, 1], of uint8 [H, W, 3], RGB."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    total = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + (1 << 15)
    gray: np.ndarray = (total >> 16).astype(np.uint8)[..., None]
    return gray


def _decode(path: Path, mode: str, refuse_size: _RefuseSize) -> np.ndarray:
    """Return the picture's pixels, uint8 [H, W, C], RGB or gray, as Pillow decodes them."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UnavailableError(
            "images need Pillow", hint="Run: pip install 'edgekit-deploy[image]'."
        ) from error
    if path.exists() and not path.is_file():  # to open a pipe would wait for whoever writes to it
        raise UsageError(f"image {path} is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _refuse_format(image, path)
                refuse_size(image.width, image.height, f"image {path}")
                pixels = np.asarray(image.convert(mode), np.uint8)
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
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _refuse_format(image: Image, path: Path) -> None:
    if image.mode not in _EIGHT_BIT:
        raise UsageError(
            f"image {path} has pixels of the format {image.mode}", expected="8 bits for each channel"
        )


# The second binding


@dataclass(frozen=True)
class ImageBinding:
    """A second way into a model with one picture: uint8 [N, H, W, C], as cameras give it, scaled by a table.

    Attributes:
        spec: What it takes: the input's name, uint8, layout NHWC.
        picture: How bytes become what the model takes; exactly what the float path gives, for every byte.
    """

    spec: TensorSpec
    picture: Picture

    def feed(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the model's feed.

        Args:
            pixels: uint8 [N, H, W, C] of the input's size and colour.

        Raises:
            UsageError: Another shape or type.
        """
        if pixels.dtype != np.uint8 or not self.spec.accepts(pixels.shape):
            raise UsageError(
                f"input {self.spec.name!r} as image-u8 takes something else",
                got=f"{pixels.dtype}{list(pixels.shape)}",
                expected=f"uint8{list(self.spec.shape)}",
            )
        return {self.spec.name: self.picture.samples(pixels)}


def image_u8_binding(pictures: Sequence[Picture], inputs: Sequence[TensorSpec]) -> ImageBinding | None:
    """Return the binding for cameras; None unless the model takes one picture and says how bytes are scaled.

    Args:
        pictures: Those of `edgekit.preprocess.Preprocessor`.
        inputs: What the model takes.
    """
    if len(inputs) != 1 or len(pictures) != 1:
        return None
    (picture,) = pictures
    spec = TensorSpec(
        picture.spec.name, "uint8", (inputs[0].shape[0], *picture.size, picture.channels), "NHWC"
    )
    return ImageBinding(spec, picture)


# Folders


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a folder.

    Attributes:
        paths: In order.
        labels: int64 [N], the class of each; None where the images lie in no class folders.
        class_names: Names of the classes.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def find_images(folder: Path, class_names: Sequence[str], what: str) -> ImageFiles:
    """Return the files of a folder of class folders of images; or of images alone, which then have no labels.

    Args:
        folder: The folder.
        class_names: The model's class names; empty to take the folders' names in alphabetical order, as Keras
            and torchvision do.
        what: What to call the data in messages.
    """
    groups = _image_files(folder, what)
    names = _class_order(sorted(name for name in groups if name), class_names, folder, what)
    files = [(path, name) for name in sorted(groups) for path in groups[name]]
    labels = np.array([names.index(name) for _, name in files], np.int64) if names else None
    return ImageFiles(tuple(path for path, _ in files), labels, names)


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

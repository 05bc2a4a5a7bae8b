"""Options that say how a source is read and for what: the same for every command that takes a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgekit.sources import SourceOptions

__all__ = ["SOURCE_OPTIONS", "format_option", "read_source_options", "source_options", "target_option"]

#: The keywords of `read_source_options`.
SOURCE_OPTIONS = ("signature", "input_shapes", "custom_objects", "trust_pickle", "requantize")

_Command = TypeVar("_Command", bound=Callable[..., Any])

target_option = click.option(
    "--target", "-t", required=True, help="A device profile or a family: see `edgekit devices list`."
)
format_option = click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="FORMAT",
    help="Only this format (tflite, onnx, openvino); may be repeated.",
)

_OPTIONS = (
    click.option(
        "--signature", default="", metavar="NAME", help="Of a SavedModel or TFLite file that has several."
    ),
    click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="NAME=1,28,28,1",
        help="Shape of an input that the file leaves open, batch first, -1 where free; may be repeated.",
    ),
    click.option(
        "--custom-objects",
        type=click.Path(path_type=Path),
        metavar="FILE.py",
        help="Your Python module with the layers and functions that the model needs; it will be run.",
    ),
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Load a model file that can run code of its maker's choice. Only for files that you trust.",
    ),
    click.option("--requantize", is_flag=True, help="Quantize again a model that is quantized already."),
)


def source_options(command: _Command) -> _Command:
    """Add the options to a command, which takes them as the keywords of `read_source_options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_source_options(
    *,
    signature: str,
    input_shapes: tuple[str, ...],
    custom_objects: Path | None,
    trust_pickle: bool,
    requantize: bool,
) -> SourceOptions:
    """Return what the user said about the source.

    Raises:
        UsageError: A shape is malformed.
    """
    from edgekit.sources import SourceOptions

    return SourceOptions(
        signature=signature,
        custom_objects=str(custom_objects.absolute()) if custom_objects else "",
        trust_pickle=trust_pickle,
        input_shapes=dict(_input_shape(text) for text in input_shapes),
        requantize=requantize,
    )


def _input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    from edgekit.errors import UsageError

    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or any(size < 1 and size != -1 for size in shape):
        raise UsageError(
            "--input-shape is malformed", got=repr(text), expected="NAME=1,28,28,1, -1 where free"
        )
    return name, shape

"""A client of an inference daemon: numpy in and out, over HTTP on TCP or a Unix socket.

    >>> from edgekit.client import Client
    >>> with Client("unix:/run/edgekit/edgekit.sock") as client:  # doctest: +SKIP
    ...     scores = client.predict("digits", images)

It speaks the Open Inference Protocol v2 with binary tensors, so it works with other servers of that protocol too.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, overload
from urllib.parse import quote

import msgspec
import numpy as np

from edgekit.daemon import codec
from edgekit.daemon.http1 import HttpError
from edgekit.errors import NetworkError, UsageError
from edgekit.http_transport import Response, Transport

__all__ = ["AnswerError", "Client"]

Array = np.ndarray[Any, Any]


class AnswerError(NetworkError):
    """The server answered that it cannot or will not.

    Attributes:
        status: HTTP's.
    """

    def __init__(self, url: str, status: int, said: str) -> None:
        super().__init__(f"{url} answered {status}: {said}")
        self.status = status


class Client:
    """Asks one inference daemon; may be used by several threads.

    Args:
        url: `http://HOST:PORT` or `unix:/path/of/socket`.
        timeout_s: For each request with all its retries.
        retries: Further tries when the server cannot be reached or is busy (503, whose Retry-After is heeded).
        binary: Whether tensors travel in binary; JSON is for servers without that extension.

    Raises:
        UsageError: The URL is neither.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, retries: int = 2, binary: bool = True) -> None:
        self._transport = Transport(url, timeout_s=timeout_s, retries=retries)
        self._binary = binary
        self._sides: dict[tuple[str, int | None], tuple[list[str], list[str]]] = {}

    @property
    def url(self) -> str:
        """The server's address."""
        return self._transport.url

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:  # noqa: PYI034  typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def predict(
        self, model: str, x: Array, *, version: int | None = ..., timeout_s: float | None = ...
    ) -> Array | dict[str, Array]: ...

    @overload
    def predict(
        self, model: str, x: Mapping[str, Array], *, version: int | None = ..., timeout_s: float | None = ...
    ) -> dict[str, Array]: ...

    def predict(
        self,
        model: str,
        x: Array | Mapping[str, Array],
        *,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> Array | dict[str, Array]:
        """Run a model once.

        Args:
            model: Its name.
            x: The array for a model with one input; else arrays by input name, with the model's own dtypes.
            version: The model's; None for the newest.
            timeout_s: In place of the client's.

        Returns:
            The array, if an array was given and the model has one output; else arrays by output name.

        Raises:
            AnswerError: The server refused; `status` says how.
            NetworkError: It could not be reached, or did not answer in time.
            UsageError: This is no array, or the model has several inputs.
        """
        path = _path(model, version)
        if isinstance(x, Mapping):
            return self._infer(f"{path}/infer", x, timeout_s)
        inputs, outputs = self._names(model, version, timeout_s)
        if len(inputs) != 1:
            raise UsageError(
                f"{model} has several inputs", got="an array", expected=f"arrays by name: {', '.join(inputs)}"
            )
        try:
            answer = self._infer(f"{path}/infer", {inputs[0]: x}, timeout_s)
        except AnswerError:
            self._sides.pop((model, version), None)  # it may have been swapped for one with other names
            raise
        return answer[outputs[0]] if len(outputs) == 1 and outputs[0] in answer else answer

    def is_live(self) -> bool:
        """Tell whether the server answers at all."""
        return self._yes("/v2/health/live")

    def is_ready(self, model: str | None = None, *, version: int | None = None) -> bool:
        """Tell whether the server, or one of its models, is ready to infer; False where nothing answers."""
        return self._yes("/v2/health/ready" if model is None else f"{_path(model, version)}/ready")

    def wait_ready(self, timeout_s: float, model: str | None = None) -> None:
        """Wait until the server, or one of its models, is ready.

        Raises:
            NetworkError: It was not in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self.is_ready(model):
            if time.monotonic() > deadline_s:
                raise NetworkError(
                    f"{model or 'the server'} at {self.url} was not ready within {timeout_s} s"
                )
            time.sleep(0.05)

    def server(self) -> dict[str, Any]:
        """Return the server's metadata: name, version, extensions."""
        return self._mapping("GET", "/v2")

    def metadata(self, model: str, *, version: int | None = None) -> dict[str, Any]:
        """Return a model's metadata: name, versions, platform, inputs, outputs."""
        return self._mapping("GET", _path(model, version))

    def statistics(self, model: str | None = None, *, version: int | None = None) -> list[dict[str, Any]]:
        """Return the statistics of a model, or of all."""
        path = "/v2/models/stats" if model is None else f"{_path(model, version)}/stats"
        found: list[dict[str, Any]] = self._mapping("GET", path).get("model_stats", [])
        return found

    def index(self) -> list[dict[str, Any]]:
        """Return what is served, and what else is installed: name, version, state, reason."""
        found: list[dict[str, Any]] = _json(self._ask("POST", "/v2/repository/index"))
        return found

    def load(self, model: str, *, timeout_s: float = 300.0) -> None:
        """Have the newest installed version of a model loaded."""
        self._ask("POST", f"/v2/repository/models/{quote(model, safe='')}/load", timeout_s=timeout_s)

    def unload(self, model: str, *, timeout_s: float = 300.0) -> None:
        """Have a model unloaded."""
        self._ask("POST", f"/v2/repository/models/{quote(model, safe='')}/unload", timeout_s=timeout_s)

    def _yes(self, path: str) -> bool:
        try:
            return self._transport.request("GET", path).status == 200
        except NetworkError:
            return False

    def _names(self, model: str, version: int | None, timeout_s: float | None) -> tuple[list[str], list[str]]:
        known = self._sides.get((model, version))
        if known is None:
            told = _json(self._ask("GET", _path(model, version), timeout_s=timeout_s))
            try:
                known = ([one["name"] for one in told["inputs"]], [one["name"] for one in told["outputs"]])
            except (KeyError, TypeError) as error:
                raise NetworkError(f"{self.url} answered what is no model metadata") from error
            self._sides[model, version] = known
        return known

    def _infer(self, path: str, feed: Mapping[str, Array], timeout_s: float | None) -> dict[str, Array]:
        head, tensors = _request(feed, binary=self._binary)
        headers = {"Content-Type": "application/json"}
        if self._binary:
            headers = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(len(head)),
            }
        response = self._ask("POST", path, (head, *tensors), headers, timeout_s)
        try:
            return _outputs(response)
        except (KeyError, TypeError, ValueError, HttpError, msgspec.MsgspecError) as error:
            raise NetworkError(f"{self.url} answered what is no inference response: {error}") from error

    def _mapping(self, method: str, path: str) -> dict[str, Any]:
        answer = _json(self._ask(method, path))
        if not isinstance(answer, dict):
            raise NetworkError(f"{self.url} does not speak the protocol", got=type(answer).__name__, expected="a JSON object")  # fmt: skip
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        body: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Response:
        response = self._transport.request(method, path, body, headers, timeout_s)
        if response.status != 200:
            raise AnswerError(self.url, response.status, _error_of(response))
        return response


def _path(model: str, version: int | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{version}"


def _request(feed: Mapping[str, Array], *, binary: bool) -> tuple[bytes, list[bytes | memoryview]]:
    """Return the JSON of an inference request, and its binary tensors."""
    inputs: list[dict[str, Any]] = []
    tensors: list[bytes | memoryview] = []
    for name, given in feed.items():
        kind, array = _wire_form(name, given)
        tensor: dict[str, Any] = {"name": name, "datatype": kind.wire, "shape": list(array.shape)}
        if binary:
            data = codec.binary_from_array(kind, array)
            tensor["parameters"] = {"binary_data_size": memoryview(data).nbytes}
            tensors.append(data)
        else:
            try:
                tensor["data"] = codec.json_from_array(name, kind, array)
            except HttpError as error:
                raise UsageError(f"input {name!r} cannot travel in JSON", hint="Use binary=True.") from error
        inputs.append(tensor)
    message = {"inputs": inputs, "parameters": {"binary_data_output": binary}}
    return json.dumps(message, separators=(",", ":")).encode(), tensors


def _wire_form(name: str, given: object) -> tuple[codec.Datatype, Array]:
    """Return the array's datatype in the protocol, and the array as it goes over the wire (little-endian)."""
    if not isinstance(given, np.ndarray):
        raise UsageError(
            f"input {name!r} is not an array", got=type(given).__name__, expected="a numpy array"
        )
    if given.dtype.kind in "OSU":
        return codec.DATATYPES["BYTES"], given
    kind = codec.BY_DTYPE.get(given.dtype.name)
    if kind is None:
        raise UsageError(
            f"input {name!r} has a dtype that the protocol lacks",
            got=given.dtype.name,
            expected=", ".join(codec.BY_DTYPE),
        )
    return kind, given.astype(given.dtype.newbyteorder("<"), copy=False)


def _outputs(response: Response) -> dict[str, Array]:
    """Return the arrays of an inference response; they view its body, which is theirs alone."""
    length = response.headers.get("inference-header-content-length")
    offset = len(response.body) if length is None else int(length)
    if not 0 <= offset <= len(response.body):
        raise ValueError("Inference-Header-Content-Length is beyond the body")
    message = json.loads(bytes(response.body[:offset]))
    arrays: dict[str, Array] = {}
    for output in message["outputs"]:
        name, kind = output["name"], codec.DATATYPES[output["datatype"]]
        shape = tuple(int(size) for size in output["shape"])
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            arrays[name] = codec.array_from_json(name, kind, shape, output["data"])
            continue
        if size < 0 or offset + size > len(response.body):
            raise ValueError(f"output {name!r} is beyond the body")
        if kind.size == 0:
            arrays[name] = codec.bytes_from_binary(name, shape, response.body[offset : offset + size])
        elif size != math.prod(shape) * kind.size:
            raise ValueError(f"output {name!r} has {size} bytes for the shape {list(shape)}")
        else:
            arrays[name] = codec.array_from_binary(kind, shape, response.body, offset)
        offset += size
    return arrays


def _json(response: Response) -> Any:
    try:
        return json.loads(bytes(response.body) or b"null")
    except ValueError as error:
        raise NetworkError(f"the server answered what is no JSON: {error}") from error


def _error_of(response: Response) -> str:
    """Return the server's own words."""
    try:
        message = json.loads(bytes(response.body))["error"]
    except (ValueError, KeyError, TypeError):
        message = bytes(response.body[:200]).decode("utf-8", "replace") or "no reason given"
    return str(message)

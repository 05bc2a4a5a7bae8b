"""Small PyTorch models, made once per test run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SHAPE", "convolutional", "digits", "exported", "folder", "scripted", "two_inputs"]

SHAPE = (1, 28, 28)


@cache
def folder() -> Path:
    """Return a folder that goes when the tests end."""
    path = Path(tempfile.mkdtemp(prefix="edgekit-torch-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def convolutional() -> Any:
    """Return a small network, [N, 1, 28, 28] to [N, 10], trained for a moment so that its answers differ."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(576, 10), nn.Softmax(-1),
    )  # fmt: skip
    images, labels = digits(1200, 0)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for i in range(0, len(images), 40):
        answers = model(torch.from_numpy(images[i : i + 40]))
        loss = nn.functional.nll_loss(torch.log(answers + 1e-9), torch.from_numpy(labels[i : i + 40]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images float32 [N, 1, 28, 28] with a bar at the place of their class, and classes int64 [N]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    images = random.normal(0, 0.3, (count, *SHAPE)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 3, 4:24] += 1.5
    return images, labels


@cache
def exported() -> Path:
    """Return the network as a program whose batch is free."""
    import torch

    path = folder() / "digits.pt2"
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        convolutional(), (torch.zeros(2, *SHAPE),), dynamic_shapes={"input": {0: batch}}
    )
    torch.export.save(program, path)
    return path


@cache
def scripted() -> Path:
    """Return the network as TorchScript."""
    import torch

    path = folder() / "digits.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; the files stay
        torch.jit.trace(convolutional(), torch.zeros(2, *SHAPE)).save(str(path))
    return path


@cache
def two_inputs() -> Path:
    """Return a program of a tensor, a dictionary of tensors and a keyword, which answers a tuple in a dictionary."""
    import torch
    from torch import nn

    class Mixer(nn.Module):
        def forward(self, left: Any, rest: dict[str, Any], *, scale: Any) -> dict[str, Any]:
            mixed = left * scale + rest["b"]
            return {"sum": mixed, "parts": (mixed.relu(), rest["a"] - left)}

    path = folder() / "mixer.pt2"
    left, a, b, scale = (torch.zeros(2, 3) for _ in range(4))  # one tensor four times would be one input
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Mixer().eval(),
        (left, {"a": a, "b": b}),
        {"scale": scale},
        dynamic_shapes={"left": {0: batch}, "rest": {"a": {0: batch}, "b": {0: batch}}, "scale": {0: batch}},
    )
    torch.export.save(program, path)
    return path

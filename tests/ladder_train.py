"""Train one network of `tests.ladder_nets`: `python -m tests.ladder_train NAME FOLDER LEAST_ACCURACY`.

Run as a child, since it brings torch. FOLDER then holds `model.onnx`, `calibration.npz` and `eval.npz`. One
thread and fixed seeds: the same machine trains the same network.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tests.corpus import EXAMPLES

sys.path.insert(0, str(EXAMPLES))

from corpus import DigitSplit, load_digits  # type: ignore[import-not-found]  # a script's neighbour

SEED, BATCH, EPOCHS, RATE = 0, 64, 3, 4e-3
CALIBRATION, CLASSES, PIXELS = 200, 10, 28
SHIFT, COPIES = 2, 3


@dataclass(frozen=True)
class Data:
    """Samples as the network takes them.

    Attributes:
        train_x: float32 [N, …].
        train_y: int64 [N].
        test_x: float32 [1000, …].
        test_y: int64 [1000].
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


# Data


def images(digits: DigitSplit, rng: np.random.Generator) -> Data:
    """Return float32 [N, 1, 28, 28] in [0, 1], and of the training digits copies moved by up to two pixels."""
    copies = [moved(digits.train_x, rng) for _ in range(COPIES)]
    x = np.concatenate([digits.train_x, *copies]).transpose(0, 3, 1, 2)
    y = np.tile(digits.train_y, 1 + COPIES)
    return as_data(x, y, digits.test_x.transpose(0, 3, 1, 2), digits.test_y)


def rows(digits: DigitSplit, rng: np.random.Generator) -> Data:
    """Return float32 [N, 28, 28]: 28 rows of 28 pixels."""
    plain = images(digits, rng)
    return Data(plain.train_x[:, 0], plain.train_y, plain.test_x[:, 0], plain.test_y)


def scaled_features(digits: DigitSplit, rng: np.random.Generator) -> Data:
    """Return float32 [N, 196]: the means of 2×2 pixels, each in a unit of its own from 0.01 to 100."""
    plain = images(digits, rng)
    scales = torch.from_numpy(feature_scales())
    train, test = (functional.avg_pool2d(x, 2).flatten(1) * scales for x in (plain.train_x, plain.test_x))
    return Data(train, plain.train_y, test, plain.test_y)


def feature_scales() -> np.ndarray:
    """Return float32 [196], log-spaced from 0.01 to 100, in an order that does not follow the image."""
    return np.random.default_rng(SEED).permutation(np.logspace(-2, 2, 196)).astype(np.float32)


def canvases(digits: DigitSplit, rng: np.random.Generator) -> Data:
    """Return float32 [N, 1, 28, 56] with two digits side by side; the class is ten times the left plus the right."""

    def pair(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        left, right = rng.integers(0, len(x), (2, count))
        wide = np.concatenate([x[left], x[right]], axis=2)
        return wide.transpose(0, 3, 1, 2), 10 * y[left] + y[right]

    train = pair(digits.train_x, digits.train_y, 10_000)
    return as_data(*train, *pair(digits.test_x, digits.test_y, 1000))


def moved(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return images [N, 28, 28, 1], each moved by up to two pixels each way."""
    padded = np.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    corners = rng.integers(0, 2 * SHIFT + 1, (len(x), 2))
    return np.stack(
        [image[r : r + PIXELS, c : c + PIXELS] for image, (r, c) in zip(padded, corners, strict=True)]
    )


def as_data(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> Data:
    """Return the arrays as tensors."""
    arrays = (train_x, train_y, test_x, test_y)
    return Data(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


# Networks


def conv(inside: int, out: int, stride: int = 1, groups: int = 1, size: int = 3) -> list[nn.Module]:
    """Return a convolution with its normalisation."""
    return [
        nn.Conv2d(inside, out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]


def plain() -> nn.Module:
    return nn.Sequential(
        *conv(1, 16, 2), nn.ReLU(), *conv(16, 32, 2), nn.ReLU(), *conv(32, 64, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def depthwise() -> nn.Module:
    def block(inside: int, out: int, stride: int) -> list[nn.Module]:
        return [
            *conv(inside, inside, stride, groups=inside),
            nn.ReLU(),
            *conv(inside, out, size=1),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *conv(1, 16, 2), nn.ReLU(), *block(16, 64, 2), *block(64, 128, 1), *block(128, 256, 1),
        nn.AvgPool2d(7), nn.Flatten(), nn.Linear(256, CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    """x + f(x), f two convolutions with hard-swish between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(width, width), nn.Hardswish(), *conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardswish(x + self.body(x))


def hard_swish() -> nn.Module:
    return nn.Sequential(
        *conv(1, 16, 2), nn.Hardswish(), Residual(16), *conv(16, 32, 2), nn.Hardswish(), Residual(32),
        nn.AvgPool2d(7), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


class Excite(nn.Module):
    """Channels times a sigmoid of what two dense layers make of their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // 4, 1),
            nn.ReLU(),
            nn.Conv2d(width // 4, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def squeeze_excite() -> nn.Module:
    return nn.Sequential(
        *conv(1, 16, 2), nn.ReLU(), Excite(16), *conv(16, 32, 2), nn.ReLU(), Excite(32),
        *conv(32, 64, 2), nn.ReLU(), Excite(64), nn.Flatten(), nn.Linear(64 * 16, CLASSES),
    )  # fmt: skip


class Attention(nn.Module):
    """Self-attention with two heads, after a normalisation of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.size = 2, width // 2
        self.norm, self.into, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        _, steps, width = x.shape
        parts = self.into(self.norm(x)).reshape(-1, steps, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.size**-0.5, -1)
        return x + self.out((weights @ value).transpose(1, 2).reshape(-1, steps, width))


class Mlp(nn.Module):
    """x + f(x), f two dense layers with GELU between, after a normalisation of their own."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(functional.gelu(self.into(self.norm(x))))


class Transformer(nn.Module):
    """Two blocks over the rows of an image; the mean over the rows decides."""

    def __init__(self) -> None:
        super().__init__()
        width = 48
        self.into = nn.Linear(PIXELS, width)
        self.places = nn.Parameter(torch.randn(1, PIXELS, width) * 0.1)
        self.blocks = nn.Sequential(Attention(width), Mlp(width, 96), Attention(width), Mlp(width, 96))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.into(x) + self.places).mean(1))
        return scores


class MixTokens(nn.Module):
    """An `Mlp` over the patches instead of the channels."""

    def __init__(self, tokens: int, hidden: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into, self.out = nn.Linear(tokens, hidden), nn.Linear(hidden, tokens)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.out(functional.gelu(self.into(self.norm(x).transpose(1, 2))))
        return x + mixed.transpose(1, 2)


class Mixer(nn.Module):
    """Two rounds of mixing patches of 4×4 pixels, then their channels."""

    def __init__(self) -> None:
        super().__init__()
        width = 48
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.rounds = nn.Sequential(
            *(layer for _ in range(2) for layer in (MixTokens(49, 64, width), Mlp(width, 96)))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.rounds(self.patches(x).flatten(2).transpose(1, 2))
        scores: Tensor = self.head(self.norm(tokens).mean(1))
        return scores


class Scales(nn.Module):
    """A network of dense layers whose first layer undoes the units of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Parameter(torch.from_numpy(1 / feature_scales()), requires_grad=False)
        self.first = nn.Linear(196, 128)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # `fold_units` puts the units into the weights
            x = x * self.units
        scores: Tensor = self.rest(self.first(x))
        return scores


def two_digits() -> nn.Module:
    return nn.Sequential(
        *conv(1, 16, 2), nn.ReLU(), *conv(16, 32, 2), nn.ReLU(), *conv(32, 64, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 28, 128), nn.ReLU(), nn.Linear(128, 100),
    )  # fmt: skip


class WideSkip(nn.Module):
    """Features of a convolutional trunk beside moments of the image, joined before the dense layers.

    Moments are sums of pixels times powers of their place: up to thousands, where the features are near 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *conv(1, 16, 2), nn.ReLU(), *conv(16, 32, 2), nn.ReLU(), *conv(32, 32, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 16, 32), nn.ReLU(),
        )  # fmt: skip
        place = torch.arange(PIXELS, dtype=torch.float32)
        powers = torch.stack([place**p for p in range(3)])
        grid = torch.einsum("pr,qc->rcpq", powers, powers).reshape(PIXELS * PIXELS, 9)[:, [0, 1, 2, 3, 6]]
        self.moments = nn.Linear(PIXELS * PIXELS, 5, bias=False)
        self.moments.weight = nn.Parameter(grid.T.contiguous(), requires_grad=False)
        self.units = nn.Parameter(1 / grid.max(0).values / 100, requires_grad=False)
        self.joined, self.head = nn.Linear(37, 48), nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        moments = self.moments(x.flatten(1))
        if self.training:  # trained in units near 1, which `put_units_back` folds into the weights
            moments = moments * self.units
        scores: Tensor = self.head(torch.relu(self.joined(torch.cat([self.trunk(x), moments], 1))))
        return scores


# What makes them hard: changes that leave the function as it is


def fused(net: nn.Module) -> nn.Module:
    """Return the network with each normalisation of a convolution folded into it."""
    for name, child in list(net.named_children()):
        setattr(net, name, fused(child))
    if not isinstance(net, nn.Sequential):
        return net
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d) and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


Weighted: TypeAlias = "nn.Conv2d | nn.Linear"


def rescale(before: Weighted, after: Weighted, factors: Tensor) -> None:
    """Multiply the channels between two layers and divide behind: ReLU lets positive factors through.

    Args:
        before: Its output channels are multiplied.
        after: Takes them, each channel as often as it has places (a flattened map).
        factors: float32 [channels], above 0.
    """
    column = factors.reshape(-1, *[1] * (before.weight.dim() - 1))
    before.weight.mul_(column)
    assert before.bias is not None
    before.bias.mul_(factors)
    if isinstance(after, nn.Conv2d) and after.groups > 1:
        after.weight.div_(column)
        return
    repeats = after.weight.shape[1] // len(factors)
    row = factors.repeat_interleave(repeats)
    after.weight.div_(row.reshape(1, -1, *[1] * (after.weight.dim() - 2)))


def weighted(net: nn.Module) -> list[Weighted]:
    """Return the layers with weights, in order."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def spread_channels(net: nn.Module) -> None:
    """Give the channels inside the second and third block scales from 2^-6 to 2^6."""
    layers = weighted(net)
    for i in (3, 4, 5):
        factors = 2 ** (torch.rand(layers[i].weight.shape[0]) * 12 - 6)
        rescale(layers[i], layers[i + 1], factors)


def blow_up(net: nn.Module) -> None:
    """Make one channel of the second convolution and one hidden unit a thousand times what they were."""
    layers = weighted(net)
    for i in (1, 3):
        factors = torch.ones(layers[i].weight.shape[0])
        factors[int(layers[i].weight.flatten(1).abs().sum(1).argmax())] = 1000.0
        rescale(layers[i], layers[i + 1], factors)


def outlier_features(net: nn.Module) -> None:
    """Make two features of each normalisation 60 times what they were, and the weights behind a 60th."""
    for block in net.modules():
        if isinstance(block, Attention | Mlp):
            block.norm.weight[[5, 17]] *= 60.0
            block.norm.bias[[5, 17]] *= 60.0
            block.into.weight[:, [5, 17]] /= 60.0


def fold_units(net: nn.Module) -> None:
    """Fold the features' units into the first layer, as an exported pipeline does."""
    assert isinstance(net, Scales)
    net.first.weight.mul_(net.units)


def put_units_back(net: nn.Module) -> None:
    """Fold the moments' units into the layer behind the join."""
    assert isinstance(net, WideSkip)
    net.joined.weight[:, 32:] *= net.units


# Training


@dataclass(frozen=True)
class Plan:
    """How one network is made.

    Attributes:
        build: Returns the untrained network.
        data: Makes its samples of the digits.
        harden: Changes the trained network, not its function; None for nothing.
    """

    build: Callable[[], nn.Module]
    data: Callable[[DigitSplit, np.random.Generator], Data] = images
    harden: Callable[[nn.Module], None] | None = None
    epochs: int = EPOCHS


PLANS = {
    "plain": Plan(plain),
    "depthwise": Plan(depthwise, harden=spread_channels, epochs=2),
    "outlier": Plan(plain, harden=blow_up),
    "hard-swish": Plan(hard_swish),
    "squeeze-excite": Plan(squeeze_excite),
    "transformer": Plan(Transformer, rows, outlier_features, epochs=4),
    "mixer": Plan(Mixer, epochs=4),
    "scales": Plan(Scales, scaled_features, fold_units, epochs=6),
    "two-digits": Plan(two_digits, canvases, epochs=5),
    "wide-skip": Plan(WideSkip, harden=put_units_back),
}


def train(net: nn.Module, data: Data, epochs: int) -> None:
    """Train with Adam under one cycle of the learning rate."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], RATE)
    batches = len(data.train_x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * batches)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(data.train_x))[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(data.train_x[index]), data.train_y[index]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def accuracy(net: nn.Module, data: Data) -> float:
    """Return the share of right answers on what was held out."""
    with torch.no_grad():
        return float((net(data.test_x).argmax(1) == data.test_y).float().mean())


def export(net: nn.Module, sample: Tensor, path: Path) -> None:
    """Write the network as ONNX by the TorchScript exporter, the batch free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of being the old exporter
        torch.onnx.export(
            net, (sample,), str(path), dynamo=False, opset_version=17, input_names=["x"],
            output_names=["scores"], dynamic_axes={"x": {0: "batch"}, "scores": {0: "batch"}},
        )  # fmt: skip


def make(name: str, folder: Path, least: float) -> None:
    """Train, harden, check and write one network with its data."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    plan = PLANS[name]
    data = plan.data(load_digits(SEED), np.random.default_rng(SEED))
    net = plan.build()
    train(net, data, plan.epochs)
    net = fused(net)
    if plan.harden is not None:
        with torch.no_grad():
            plan.harden(net)
    share = accuracy(net, data)
    print(f"{name}: {share:.1%}")
    if share < least:
        sys.exit(f"{name} gives {share:.1%} right answers, expected {least:.0%} or more")
    export(net, data.test_x[:2], folder / "model.onnx")
    np.savez(folder / "calibration.npz", x=data.train_x[:CALIBRATION].numpy())
    np.savez(folder / "eval.npz", x=data.test_x.numpy(), y=data.test_y.numpy())


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))

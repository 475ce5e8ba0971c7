"""The three architectures of the thesis: a CNN (Table 4.1), VGG-16 and the CIFAR ResNets.

Layers are defined in the order in which the released code defines them, so that `state_dict`, the definition order
of ties and the neighbours of lookahead pruning agree with it.
"""

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from lib import UserError

RESNET_BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
NAMES = ("cnn", "vgg16", *RESNET_BLOCKS)
INITS = ("own", "variance_scaling", "xavier_normal")

# Standard deviation of a unit normal cut at two standard deviations (TensorFlow's correction).
TRUNCATED_STD = 0.87962566


def build(name: str, num_classes: int = 10, width: float = 1.0) -> nn.Module:
    """A freshly initialised network that maps float images to logits of shape (batch, num_classes).

    `width` multiplies the number of channels (1.0 is the real network; smaller ones serve the quick profile).
    The model carries `input_shape`, the (channels, height, width) of one image. Raises `UserError` for an unknown
    name, fewer than two classes or a width that is not positive and finite.
    """
    if name not in NAMES:
        raise UserError(f"Unknown model {name!r}: choose one of {', '.join(NAMES)}.")
    numbers = isinstance(num_classes, Integral) and isinstance(width, Real)
    if not numbers or num_classes < 2 or not 0 < width < math.inf:
        raise UserError(f"A model needs at least 2 classes and a positive, finite width, not {num_classes!r} and {width!r}.")
    if name == "cnn":
        return CNN(num_classes, width)
    if name == "vgg16":
        return VGG16(num_classes, width)
    return ResNet(RESNET_BLOCKS[name], num_classes, width)


def initialise(model: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draws the weights of every Conv2d and Linear anew, in place, in definition order, from `generator` alone.

    `own`: what the architecture's constructor does (CNN and VGG-16: PyTorch's uniform default; ResNets:
    Kaiming-normal weights and PyTorch's default bias of the classifier). `variance_scaling`: SNIP's (Lee et al. 2019,
    section 4.2; scale 1, fan-in, normal cut at two standard deviations as in its code, snip/network.py; biases 0, as that
    trains with). `xavier_normal`: a normal of Glorot and Bengio's variance (2010, eq. 12), 2 / (fan-in + fan-out); biases
    stay as they were. BatchNorm is never touched.
    generator: on the device of the weights. Raises `UserError` for an unknown name.
    """
    if init not in INITS:
        raise UserError(f"Unknown initialisation {init!r}: choose one of {', '.join(INITS)}.")
    draw = {"own": _own, "variance_scaling": _variance_scaling, "xavier_normal": _xavier_normal}[init]
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            draw(layer, getattr(model, "kaiming", False), generator)


def _own(layer: nn.Conv2d | nn.Linear, kaiming: bool, generator: torch.Generator) -> None:
    """PyTorch's `reset_parameters` with a generator, or the ResNets' Kaiming-normal."""
    if kaiming:
        nn.init.kaiming_normal_(layer.weight, generator=generator)
    else:
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _variance_scaling(layer: nn.Conv2d | nn.Linear, _: bool, generator: torch.Generator) -> None:
    std = math.sqrt(1 / layer.weight[0].numel()) / TRUNCATED_STD
    # As nn.init.trunc_normal_ does it from PyTorch 2.13 on, to the bit: before, it drew other numbers from a generator.
    weight = nn.init.normal_(layer.weight, std=std, generator=generator)
    with torch.no_grad():
        while (outside := weight.abs() > 2 * std).any():
            weight.copy_(torch.where(outside, torch.empty_like(weight).normal_(std=std, generator=generator), weight))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _xavier_normal(layer: nn.Conv2d | nn.Linear, _: bool, generator: torch.Generator) -> None:
    nn.init.xavier_normal_(layer.weight, generator=generator)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class CNN(nn.Module):
    """Table 4.1 of the thesis: two 5x5 convolutions, each pooled, and two linear layers, on 28x28 grey images."""

    input_shape = (1, 28, 28)

    def __init__(self, num_classes: int, width: float):
        super().__init__()
        first, second, hidden = (_scaled(channels, width) for channels in (20, 50, 500))
        self.conv1 = nn.Conv2d(1, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(second * 4 * 4, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(self.relu(self.conv1(images)))
        hidden = self.pool(self.relu(self.conv2(hidden)))
        return self.fc2(self.relu(self.fc1(hidden.flatten(1))))


class VGG16(nn.Module):
    """ShrinkBench's `vgg_bn_drop`: 13 convolutions with bias, BatchNorm and dropout, and two linear layers."""

    input_shape = (3, 32, 32)
    layout = torch.channels_last   # of weights and signals in training
    stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self, num_classes: int, width: float):
        super().__init__()
        layers, channels = [], 3
        for stage in self.stages:
            for index, wide in enumerate(stage):
                out = _scaled(wide, width)
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out, eps=1e-3), nn.ReLU()]
                if index < len(stage) - 1:
                    layers += [nn.Dropout(0.4 if len(layers) > 3 else 0.3)]
                channels = out
            layers += [nn.MaxPool2d(2, ceil_mode=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(channels, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


class Block(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: every second pixel, and zeros for the new channels."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.stride, self.new_channels = stride, out - channels

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(images)))
        return self.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))

    def shortcut(self, images: Tensor) -> Tensor:
        if self.stride == 1:
            return images
        before = self.new_channels // 2
        padding = (0, 0, 0, 0, before, self.new_channels - before)
        return nn.functional.pad(images[:, :, ::self.stride, ::self.stride], padding)


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016, section 4.2): three stages of `blocks` blocks, Kaiming-normal weights."""

    input_shape = (3, 32, 32)
    kaiming = True
    # How its training lays weights and signals out in memory: a sixth faster on a CPU.
    layout = torch.channels_last

    def __init__(self, blocks: int, num_classes: int, width: float):
        super().__init__()
        first, *_ = wide = [_scaled(channels, width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        layers, channels = [], first
        for stage, out in enumerate(wide):
            for index in range(blocks):
                layers += [Block(channels, out, stride=2 if stage > 0 and index == 0 else 1)]
                channels = out
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.layers(self.relu(self.bn1(self.conv1(images))))
        return self.linear(self.pool(hidden).flatten(1))

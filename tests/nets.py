"""Tiny networks, batches and an explicit Hessian for the tests of the mathematics."""

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions around a shortcut, then the classifier."""

    input_shape = (1, 4, 4)

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, stride=1, padding=1), nn.BatchNorm2d(2)
        self.relu, self.pool, self.linear = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(8, 3)

    def forward(self, images):
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.relu(self.bn2(self.conv2(hidden)) + hidden)
        return self.linear(self.pool(hidden).flatten(1))


def chain(batchnorm=False, bias=True):
    """conv 1-2 (stride 2), conv 2-2, linear 8-4, linear 4-3."""
    norm = (lambda: [nn.BatchNorm2d(2)]) if batchnorm else list
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1, bias=bias), *norm(), nn.ReLU(),
        nn.Conv2d(2, 2, 3, padding=1, bias=bias), *norm(), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3, bias=bias),
    )
    net.input_shape = (1, 4, 4)
    return net


def perceptron():
    """Linear 6-5-4-3."""
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    net.input_shape = (6,)
    return net


NETS = {
    "perceptron": perceptron,
    "chain": chain,
    "batchnorm": lambda: chain(batchnorm=True),
    "residual": Residual,
}


def make(name, seed=0):
    """The net in float64, with BatchNorm statistics and parameters that are not trivial, in eval mode."""
    torch.manual_seed(seed)
    net = NETS[name]().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


def batch(net, count=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *net.input_shape, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (count,), generator=generator)


def loss_of(net, images, targets, names, temperature=1.0):
    """The loss as a function of one flat vector: the weights `names`, and the vector to start from."""
    fixed = {name: value.detach() for name, value in net.named_parameters()}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    shapes = [fixed[name].shape for name in names]

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        moved = fixed | {name: part.view(shape) for name, part, shape in zip(names, parts, shapes)}
        logits = torch.func.functional_call(net, (moved, {k: v.clone() for k, v in buffers.items()}), (images,))
        return nn.functional.cross_entropy(logits / temperature, targets)

    return loss, torch.cat([fixed[name].flatten() for name in names])


def hessian(net, images, targets, names, temperature=1.0):
    """The explicit Hessian over the weights `names`, and the gradient."""
    loss, start = loss_of(net, images, targets, names, temperature)
    return torch.func.hessian(loss)(start), torch.func.grad(loss)(start)


def flat(scores, names):
    return torch.cat([scores[name].flatten() for name in names])

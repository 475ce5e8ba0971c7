"""What cells will cost before they are run: floating-point operations, counted, and seconds, from a short calibration."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import median_high

import torch
from torch.utils.flop_counter import FlopCounterMode

from lib import data, models, pruning
from lib.experiment import Cell, one_thread
from lib.lanes import Lanes
from lib.trainer import Learner

CALIBRATION = 10.0   # seconds, shared out among the networks


@dataclass(frozen=True)
class Estimate:
    """For some cells: floating-point operations of their training and testing, and seconds of one worker."""

    flops: float
    seconds: float


@cache
def _forward(model: str, classes: int, width: float) -> int:
    """Operations of one image's forward pass, 2 for each multiplication and addition."""
    network = models.build(model, classes, width).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *network.input_shape))
    return counter.get_total_flops()


def flops(cell: Cell) -> float:
    """A training step costs three forward passes (its backward pass two); every epoch, and once before, it is tested."""
    training, test = data.sizes(cell.dataset)
    trained = (cell.train_images or training) * cell.epochs
    tested = test * (cell.epochs + 1) if cell.epochs else 0
    return (3 * trained + tested) * _forward(cell.model, data.classes(cell.dataset), cell.width)


def rate(model: str, classes: int, width: float, batch_size: int, seconds: float, device: str = "cpu", copies: int = 1,
         precision: str = "float32") -> float:
    """Operations per second of training steps as a worker takes them, on a processor by one thread, on a card of that many
    copies side by side: by the median time of what `seconds` allow."""
    draw = torch.Generator().manual_seed(0)
    networks = [models.build(model, classes, width).to(device).train() for _ in range(copies)]
    whole = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(networks[0]).items()}
    learners = [Learner(network, whole, 1e-3, precision) for network in networks]
    images = torch.randn(batch_size, *networks[0].input_shape, generator=draw).to(device)
    labels, times = torch.zeros(batch_size, dtype=torch.long, device=device), []
    lanes, began = Lanes(images.device, copies), time.perf_counter()
    with one_thread():
        while len(times) < 2 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            lanes.each("learn", [learner.learn for learner in learners], images, labels)
            lanes.join()
            learners[-1].loss.item()   # waits for the device
            times.append(time.perf_counter() - start)
    return 3 * batch_size * copies * _forward(model, classes, width) / median_high(times)


def of(cells: Iterable[Cell], *where) -> dict[str, Estimate]:
    """Pair -> what its cells cost; where: device, copies and precision, as for `rate`. Masks alone are not estimated; cells
    that will take over the training of their twin (`experiment.served`) count as if they were trained."""
    trained = {cell: (cell.model, data.classes(cell.dataset), cell.width, cell.batch_size) for cell in cells if cell.epochs}
    networks = sorted(set(trained.values()))
    rates = {network: rate(*network, CALIBRATION / len(networks), *where) for network in networks}
    costs: dict[str, Estimate] = {}
    for cell, network in trained.items():
        pair, count = f"{cell.dataset}/{cell.model}", flops(cell)
        so_far = costs.get(pair, Estimate(0, 0))
        costs[pair] = Estimate(so_far.flops + count, so_far.seconds + count / rates[network])
    return costs

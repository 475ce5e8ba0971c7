"""Training many sparse copies of one network: ways to do it against each other, in copies times images per second.

    python -m tests.benchmarks.bench_stack --data DIR --model resnet56
    python -m tests.benchmarks.bench_stack --data DIR --model vgg16 --device cuda --copies 12 --precision bf16

One after the other: `trainer.train`. Lock-step, side by side: `stack.train`, each copy in a lane of its own, on a card
recorded and replayed. Lock-step, stacked: one network of K times the weights, by `torch.func.vmap`, whose convolutions are
grouped ones; on a card recorded and replayed too. Processes: as a sweep runs, a cell in each; only on the processor, one
thread each. All on the same first images; one epoch to begin with, which is not timed (a card records its steps in it), and
no test in between.
"""

import os
import time
from functools import partial

import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from lib import sweep, trainer
from lib.lanes import Lanes
from tests.benchmarks import bench_trainer, measure
from tests.benchmarks.bench_trainer import RATE, SETS, cell


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(42)


def images(options):
    return measure.images(options, options.images, 1, SETS[options.model]).to(options.device)


def copies(options) -> tuple[list, list]:
    made = [cell(options.model) for _ in range(options.copies)]
    return ([model.to(options.device) for model, _ in made],
            [{name: mask.to(options.device) for name, mask in masks.items()} for _, masks in made])


class Stacked:
    """K copies as one network of stacked weights."""

    def __init__(self, models: list, masks: list, precision: str):
        self.model, self.precision = models[0].train(), precision
        self.parameters, self.buffers = stack_module_state(models)
        self.kept = {name: torch.stack([its[name] for its in masks]).to(torch.float32) for name in masks[0]}
        with torch.no_grad():
            for name, mask in self.kept.items():
                self.parameters[name].mul_(mask)
        self.optimizer = torch.optim.SGD(self.parameters.values(), lr=RATE, momentum=trainer.MOMENTUM, nesterov=True)

    def learn(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        forward = vmap(lambda own, state: functional_call(self.model, (own, state), (images,)), randomness="same")
        with trainer.computing(self.precision, images.device):
            logits = forward(self.parameters, self.buffers).to(images.dtype)
        self.optimizer.zero_grad()
        vmap(cross_entropy, in_dims=(0, None))(logits, labels).sum().backward()
        for name, mask in self.kept.items():
            self.parameters[name].grad.mul_(mask)
        self.optimizer.step()


def timed(options, works: list, data, lanes: Lanes) -> float:
    """Seconds of an epoch in which each work takes every batch, after one that is not timed."""
    for _ in range(2):
        began, own = time.perf_counter(), generator()
        for index in trainer.order(data, own).split(bench_trainer.BATCH):
            lanes.each("learn", works, *trainer.batch(data, index, own))
        lanes.join()
        if options.device != "cpu":
            torch.cuda.synchronize()
    return time.perf_counter() - began


def learners(options) -> list:
    made = [trainer.Learner(model, its, RATE, options.precision) for model, its in zip(*copies(options))]
    for learner in made:
        learner.model.train()
    return made


def one_by_one(options) -> float:
    data = images(options)
    return options.copies * options.images / sum(
        timed(options, [each.learn], data, Lanes(data.train_images.device, 1)) for each in learners(options))


def side_by_side(options) -> float:
    data = images(options)
    return options.copies * options.images / timed(
        options, [each.learn for each in learners(options)], data, Lanes(data.train_images.device, options.copies))


def stacked(options) -> float:
    data = images(options)
    return options.copies * options.images / timed(
        options, [Stacked(*copies(options), options.precision).learn], data, Lanes(data.train_images.device, 1))


def processes(workers, options) -> float:
    """By the clock that all share, from the first training's begin to the last one's end."""
    futures = [workers.submit(bench_trainer.train, options, options.images, 1, options.precision, False)
               for _ in range(options.copies)]
    begins, ends, _ = zip(*(future.result() for future in futures))
    return options.copies * options.images / (max(ends) - min(begins))


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", choices=SETS, default="resnet56", help="the network (resnet56)")
    parser.add_argument("--copies", type=int, default=2, help="K (2)")
    parser.add_argument("--images", type=int, default=2 * bench_trainer.BATCH, help="training images (256)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--precision", choices=trainer.PRECISIONS, default="float32")
    options = parser.parse_args()
    print(f"{measure.machine()}; {options.copies} copies of {options.model}, {options.device}, {options.precision}",
          flush=True)
    ways = {"one after the other": one_by_one, "lock-step, side by side": side_by_side}
    if options.device == "cpu" or options.precision == "float32":   # else vmap's BatchNorm refuses bf16 (PyTorch 2.11)
        ways["lock-step, stacked"] = stacked
    sides = {name: partial(way, options) for name, way in ways.items()}
    with measure.process(os.cpu_count(), sweep._prepare) as workers:
        if options.device == "cpu":
            sides["processes"] = partial(processes, workers, options)
        turns, others = measure.by_turns(sides, options.rounds)
    for name, each in turns.items():
        ratios = [turn.value / first.value for turn, first in zip(each, turns["one after the other"])]
        processor = [1e3 * turn.processor / options.copies / options.images for turn in each]
        print(f"{name:24} {measure.middle([turn.value for turn in each])} images per second, "
              f"{measure.middle(ratios)} times the first, {measure.middle(processor)} processor milliseconds for each")
    print(f"other programs took {100 * others:.0f} % of the processor")


if __name__ == "__main__":
    measure.guarded(main)

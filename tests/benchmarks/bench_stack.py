"""Training many sparse copies of one network: ways to do it against each other, in copies times images per second.

    python -m tests.benchmarks.bench_stack --data DIR --model resnet56
    python -m tests.benchmarks.bench_stack --data DIR --model vgg16 --device cuda --precision bf16

One after the other: `trainer.train`. \
Lock-step, stacked: `stack.train`, K copies by `torch.func.vmap`, whose convolutions are
grouped ones. Lock-step, in branches: the batch is made once, and each copy's step follows in turn (what one CUDA graph
with a branch for each copy would capture). Processes: as a sweep runs, a cell in each; only on the processor, one thread
each. All on the same first images, without a test after the epoch.
"""

import os
import time
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from lib import pruning, stack, sweep, trainer
from tests.benchmarks import bench_trainer, measure
from tests.benchmarks.bench_trainer import BATCH, RATE, SETS, cell


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(42)


def images(options):
    return measure.images(options, options.images, 1, SETS[options.model]).to(options.device)


def copies(options) -> tuple[list, list]:
    made = [cell(options.model) for _ in range(options.copies)]
    return ([model.to(options.device) for model, _ in made],
            [{name: mask.to(options.device) for name, mask in masks.items()} for _, masks in made])


def timed(options, train) -> float:
    """Copies times images per second."""
    data, (models, masks) = images(options), copies(options)
    began = time.perf_counter()
    train(models, masks, data)
    if options.device != "cpu":
        torch.cuda.synchronize()
    return len(models) * options.images / (time.perf_counter() - began)


def one_by_one(options) -> float:
    def train(models, masks, data):
        for model, its in zip(models, masks):
            trainer.train(model, its, data, epochs=1, learning_rate=RATE, generator=generator(), precision=options.precision)

    return timed(options, train)


def stacked(options) -> float:
    return timed(options, lambda models, masks, data: stack.train(
        models, masks, data, epochs=1, learning_rate=RATE, generator=generator(), precision=options.precision))


def branches(options) -> float:
    def train(models, masks, data):
        for model, its in zip(models, masks):
            model.to(memory_format=getattr(model, "layout", torch.preserve_format)).train()
            pruning.apply(model, its)
        weights = [parameter for model in models for parameter in model.parameters()]
        optimizer, own = torch.optim.SGD(weights, lr=RATE, momentum=0.9, nesterov=True), generator()
        for index in trainer.order(data, own).split(BATCH):
            inputs, labels = trainer.batch(data, index, own)
            optimizer.zero_grad()
            for model in models:
                with trainer.computing(options.precision, inputs.device):
                    logits = model(inputs)
                cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    return timed(options, train)


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
    parser.add_argument("--images", type=int, default=2 * BATCH, help="training images (256)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--precision", choices=trainer.PRECISIONS, default="float32")
    options = parser.parse_args()
    print(f"{measure.machine()}; {options.copies} copies of {options.model}, {options.device}, {options.precision}",
          flush=True)
    ways = {"one after the other": one_by_one, "lock-step, stacked": stacked, "lock-step, in branches": branches}
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

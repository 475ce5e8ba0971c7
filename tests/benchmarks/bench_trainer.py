"""Training on MNIST with all cores busy: `lib.trainer` against the loop that the released code trained with.

    python -m tests.benchmarks.bench_trainer --data DIR
    python -m tests.benchmarks.bench_trainer --data DIR --threads 1    # on a busy machine

Ours: as a sweep runs, one process for each core, one thread each, a cell in each. The released loop,
written anew and kept to what costs time (noajam/sota-prune, experiment/train.py and its data sets): one
cell, PyTorch's threads on all cores, a DataLoader of 8 workers that turns each image into a PIL image and
that into a normalised tensor, weights times masks at every call, loss and accuracies read from every batch.
Its loaders keep their workers from epoch to epoch, so that starting them, which 60,000 images make
negligible, is not counted. The measure is images trained per second, passes over the test set included;
ours makes one more of these, before training. Where other programs run, threads that wait for each other
waste time: with --threads 1, the processor seconds tell what the released loop would do if its two threads
never waited. Afterwards: what bounds ours.
"""

import copy
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from lib import data, models, pruning, sweep, trainer
from tests.benchmarks import measure

LOADERS = 8    # DataLoader workers of the released code
RATE, BATCH = 1e-3, 128
TARGET, AIM = 2, 3


def cell() -> tuple[nn.Module, pruning.Masks]:
    """The CNN of Table 4.1 and a mask that leaves an eighth of it."""
    torch.manual_seed(42)
    model = models.build("cnn")
    return model, pruning.masks(model, "GlobalMag", None, None, 8)


# --- ours

def train(options, train_images: int, epochs: int) -> tuple[float, float, float]:
    """A cell, in a worker of a sweep; returns when its training began and ended (by a clock that all
    processes share) and the processor seconds that it took."""
    torch.set_num_threads(1)
    mnist, (model, masks) = _mnist(options, train_images), cell()
    began, processor = time.monotonic(), time.process_time()
    trainer.train(model, masks, mnist, epochs=epochs, learning_rate=RATE, batch_size=BATCH,
                  generator=torch.Generator().manual_seed(42))
    return began, time.monotonic(), time.process_time() - processor


def ours(workers, options) -> float:
    """Images trained per second by all processes together."""
    futures = [workers.submit(train, options, options.images, options.epochs) for _ in range(os.cpu_count())]
    begins, ends, _ = zip(*(future.result() for future in futures))
    return len(futures) * options.images * options.epochs / (max(ends) - min(begins))


def _mnist(options, train_images: int) -> data.Data:
    return measure.images(options, train_images, train_images // 6)    # 60,000 to 10,000


# --- the released loop

class Pictures(Dataset):
    """One image at a time: array, PIL image, tensor in [0, 1], normalised, as torchvision's transforms go."""

    def __init__(self, images: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]):
        self.images, self.labels, self.mean, self.std = images.squeeze(1), labels, mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[index].numpy())
        pixels = torch.from_numpy(np.array(picture)).unsqueeze(-1).permute(2, 0, 1).contiguous()
        pixels = pixels.to(torch.float32).div(255)
        mean, std = torch.as_tensor(self.mean), torch.as_tensor(self.std)
        return pixels.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)), int(self.labels[index])


def loaders(options) -> dict[str, DataLoader]:
    """Training set (shuffled) and test set."""
    mnist = _mnist(options, options.images)
    splits = {"train": (mnist.train_images, mnist.train_labels),
              "test": (mnist.test_images, mnist.test_labels)}
    return {
        name: DataLoader(Pictures(*split, mnist.mean, mnist.std), BATCH, shuffle=name == "train",
                         num_workers=LOADERS, persistent_workers=True)
        for name, split in splits.items()
    }


def mask_at_every_call(model: nn.Module, masks: pruning.Masks) -> None:
    """Each pruned layer multiplies its weight by its mask whenever it is called."""
    for name, mask in masks.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        call = conv2d if isinstance(layer, nn.Conv2d) else linear
        layer.forward = partial(_masked, call, layer, mask.float())


def _masked(call: Callable, layer: nn.Module, mask: Tensor, inputs: Tensor) -> Tensor:
    return call(inputs, layer.weight * mask, layer.bias)


def epoch(model: nn.Module, batches: DataLoader, optimizer: torch.optim.SGD | None) -> tuple[float, ...]:
    """One pass, with an optimizer to train, without to test; mean loss, top-1 and top-5 over the batches."""
    model.train(optimizer is not None)
    sums = [0.0, 0.0, 0.0]
    with torch.set_grad_enabled(optimizer is not None):
        for images, labels in batches:
            logits = model(images)
            loss = cross_entropy(logits, labels)
            if optimizer is not None:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            right = logits.topk(5).indices.eq(labels[:, None])
            values = loss.item(), right[:, :1].sum().item() / BATCH, right.sum().item() / BATCH
            sums = [total + value for total, value in zip(sums, values)]
    return tuple(total / len(batches) for total in sums)


def released(model: nn.Module, sets: dict[str, DataLoader], options) -> float:
    """Images trained per second."""
    model = copy.deepcopy(model)
    mask_at_every_call(model, cell()[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    began = time.monotonic()
    for _ in range(options.epochs):
        epoch(model, sets["train"], optimizer)
        epoch(model, sets["test"], None)
    return options.images * options.epochs / (time.monotonic() - began)


# --- what bounds ours

KINDS = {
    "convolutions": ("convolution", "conv2d"),
    "linear layers": ("addmm", "aten::mm"),
    "ReLU, pooling": ("clamp_min", "threshold", "max_pool", "relu"),
    "optimizer": ("Optimizer", "_foreach", "SGD"),
}


def bounds(options) -> list[str]:
    """In a worker of a sweep: time by kind of operation; and floating-point operations per second against a
    peak, both by processor time, so that other programs hardly matter."""
    run = partial(train, options, options.images // 2, 1)
    run()
    with FlopCounterMode(display=False) as counter:
        run()
    achieved, possible = zip(*((counter.get_total_flops() / run()[2], peak()) for _ in range(5)))
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    share = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in profiler.key_averages():
        kinds = [kind for kind, words in KINDS.items() if any(word in event.key for word in words)]
        share[(*kinds, "everything else")[0]] += event.self_cpu_time_total
    total = sum(share.values())
    done, possible = median(achieved) / 1e9, median(possible) / 1e9
    return [
        "time: " + ", ".join(f"{kind} {100 * took / total:.0f} %" for kind, took in share.items()),
        f"one thread does {done:.0f} GFLOP/s (convolutions and linear layers, over the whole time), "
        f"{100 * done / possible:.0f} % of the {possible:.0f} of a 1024 x 1024 product",
    ]


def peak() -> float:
    """Floating-point operations per second of a float32 matrix product on this thread."""
    left, right = torch.rand(2, 1024, 1024)
    began = time.process_time()
    for _ in range(10):
        left @ right
    return 10 * 2 * 1024**3 / (time.process_time() - began)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--images", type=int, default=3200, help="training images (3200), 6 to a test image")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each turn (5, as the thesis)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the released loop (all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "This DataLoader will create")    # it will, as the released code does
    print(measure.machine(), flush=True)
    model, sets = cell()[0], loaders(options)
    with measure.process(os.cpu_count(), sweep._prepare) as workers:
        turns, others = measure.by_turns({
            "ours": lambda: ours(workers, options),
            "released": lambda: released(model, sets, options),
        }, options.rounds)
        trained = {"ours": os.cpu_count(), "released": 1}    # cells at once
        for name, each in turns.items():
            images = trained[name] * options.images * options.epochs
            processor = [1e6 * turn.processor / images for turn in each]
            print(f"{name}: {measure.middle([turn.value for turn in each])} images trained per second, "
                  f"{measure.middle(processor)} processor microseconds for each")
        ratios = [a.value / b.value for a, b in zip(*turns.values())]
        busy = [os.cpu_count() * b.processor / a.processor for a, b in zip(*turns.values())]
        print(f"ours is {measure.middle(ratios)} times as fast (target: {TARGET}, aim: {AIM}), "
              f"by processor seconds {measure.middle(busy)}")
        print(f"other programs took {100 * others:.0f} % of the processor", flush=True)
        print("What bounds ours:", *workers.submit(bounds, options).result(), sep="\n  ")


if __name__ == "__main__":
    measure.guarded(main)

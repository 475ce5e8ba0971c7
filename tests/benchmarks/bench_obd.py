"""The exact Hessian diagonal of the CNN: `lib.scorers.obd.diagonal` against BackPACK's DiagGGNExact.

    python -m tests.benchmarks.bench_obd --data DIR              # 2,000 images, float32 and float64
    python -m tests.benchmarks.bench_obd --data DIR --images 60000 --rounds 1
    python -m tests.benchmarks.bench_obd --data DIR --threads 1              # on a busy machine

Both compute the same numbers, which is checked, on all cores, in a process each, by turns. BackPACK's
memory grows with images times classes, so at first it is timed with several batch sizes, and its fastest
one competes. (The released code, which uses BackPACK, has batches of 60.) Where other programs run, threads
that wait for each other waste time: the processor seconds of one thread each then tell more. Needs
BackPACK, which the project itself does not: pip install --no-deps backpack-for-pytorch einops unfoldNd
"""

import os
import resource
import time
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor, nn

from lib import UserError, models
from lib.scorers import obd
from tests.benchmarks import measure

BATCHES = (30, 60, 125, 250, 500)
FULL = 60_000    # images of MNIST's training set
TARGET = 1.5


def network(dtype: torch.dtype) -> nn.Module:
    """The CNN of Table 4.1, the same in every process."""
    torch.manual_seed(42)
    return models.build("cnn").to(dtype).eval()


def ours(images: Tensor, _: Tensor, chunk: int | None) -> list[Tensor]:
    """h of each layer, by `lib`; chunk: images times classes, instead of the module's own."""
    obd.CHUNK = chunk or obd.CHUNK
    return list(obd.diagonal(network(images.dtype), images).values())


def backpack(images: Tensor, labels: Tensor, batch: int) -> list[Tensor]:
    """The same by BackPACK, which wants a sequence of layers; batches are weighed, for it averages."""
    from backpack import backpack as extended
    from backpack import extend
    from backpack.extensions import DiagGGNExact

    cnn = network(images.dtype)
    layers = [cnn.conv1, nn.ReLU(), nn.MaxPool2d(2), cnn.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
              cnn.fc1, nn.ReLU(), cnn.fc2]
    sequence, loss = extend(nn.Sequential(*layers)), extend(nn.CrossEntropyLoss())
    weighted = [layer.weight for layer in (cnn.conv1, cnn.conv2, cnn.fc1, cnn.fc2)]
    sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in weighted]
    for some, answers in zip(images.split(batch), labels.split(batch)):
        with extended(DiagGGNExact()):
            loss(sequence(some), answers).backward()
        for total, weight in zip(sums, weighted):
            total += weight.diag_ggn_exact * len(some)
            weight.grad = None
    return [total / len(images) for total in sums]


@dataclass
class Result:
    """Seconds, processor seconds, the process's peak memory in MB, and h of each layer."""

    seconds: float
    processor: float
    peak: float
    diagonal: list[Tensor]


def timed(function, options, count: int, dtype: torch.dtype, size: int | None) -> Result:
    """In a process of its own."""
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "Full backward hook is firing")    # BackPACK's, of no consequence here
    mnist = measure.images(options, count)
    images, labels = mnist.normalise(mnist.train_images).to(dtype), mnist.train_labels
    function(images[:64], labels[:64], size)    # warm
    began, processor = time.perf_counter(), time.process_time()
    diagonal = function(images, labels, size)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return Result(seconds, processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, diagonal)


def fastest(function, sizes, options, dtype: torch.dtype, unit: str) -> int:
    """Times every size, three times; says what it saw; returns the one of fewest processor seconds.
    In one process, the smallest size at first, so that the process's peak is each size's own."""
    seen = {}
    with measure.process() as alone:
        for size in sorted(sizes):
            task = timed, function, options, options.search, dtype, size
            turns = [alone.submit(*task).result() for _ in range(3)]
            seen[size] = min(turn.processor for turn in turns)
            each = 1e3 * seen[size] / options.search
            print(f"  {function.__name__}, {unit} {size}: {each:.2f} processor ms an image, "
                  f"peak {turns[-1].peak:.0f} MB", flush=True)
    return min(seen, key=seen.get)


def compete(dtype: torch.dtype, options) -> None:
    print(f"\n{dtype}", flush=True)
    batch = options.batch or fastest(backpack, BATCHES, options, dtype, "batch")
    if options.chunks:
        fastest(ours, options.chunks, options, dtype, "chunk")
    with measure.process() as first, measure.process() as second:
        count = options.images
        turns, others = measure.by_turns({
            "ours": lambda: first.submit(timed, ours, options, count, dtype, None).result(),
            "backpack": lambda: second.submit(timed, backpack, options, count, dtype, batch).result(),
        }, options.rounds)
    results = {name: [turn.value for turn in each] for name, each in turns.items()}
    for name, each in results.items():
        seconds = [result.seconds for result in each]
        print(f"{name}: {measure.middle(seconds)} s for {count:,} images (extrapolated to {FULL:,}: "
              f"{median(seconds) * FULL / count:.0f} s), peak {each[-1].peak:.0f} MB")
    ratios = [b.seconds / a.seconds for a, b in zip(*results.values())]
    processor = [b.processor / a.processor for a, b in zip(*results.values())]
    print(f"ours is {measure.middle(ratios)} times as fast as BackPACK with batches of {batch} "
          f"(target: {TARGET}), by processor seconds {measure.middle(processor)}")
    print(f"other programs took {100 * others:.0f} % of the processor")
    pairs = zip(*(each[0].diagonal for each in results.values()))
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    print(f"largest difference, relative to each layer's largest value: {difference:.1e}", flush=True)
    if not difference < (1e-4 if dtype == torch.float32 else 1e-10):
        raise SystemExit("The two do not agree.")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--images", type=int, default=2000, help="images of each turn (2000)")
    parser.add_argument("--search", type=int, default=500, help="images to time batch sizes with (500)")
    parser.add_argument("--batch", type=int, help="BackPACK's batch size (the fastest of those tried)")
    parser.add_argument("--chunks", type=int, nargs="+", help="try these values of obd.CHUNK as well")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (one per core)")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="only this one")
    options = parser.parse_args()
    if find_spec("backpack") is None:
        raise UserError("BackPACK is missing: pip install --no-deps backpack-for-pytorch einops unfoldNd")
    print(f"{measure.machine()}; {options.threads} threads")
    for dtype in [options.dtype] if options.dtype else ["float32", "float64"]:
        compete(getattr(torch, dtype), options)


if __name__ == "__main__":
    measure.guarded(main)

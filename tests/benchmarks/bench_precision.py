"""What bf16 does to a cell: accuracy of the same cells trained in float32 and in bf16, against what a seed alone moves.

    python -m tests.benchmarks.bench_precision --data DIR
    python -m tests.benchmarks.bench_precision --data DIR --images 50000 --epochs 25 --device cuda

By default cut down to what a processor does in minutes: the first images of CIFAR-10, few epochs. Every cell is trained in
float32 under two or more seeds and in bf16 under the first. bf16 counts as proved for a network where no cell's
difference in top-1 is larger than the largest that two seeds show.
"""

from dataclasses import replace

from lib import experiment
from lib.experiment import Cell
from tests.benchmarks import measure

CELLS = (("Dense", 1), ("GlobalMag", 8), ("SNIP", 32))


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="resnet56", help="the network (resnet56)")
    parser.add_argument("--images", type=int, default=2560, help="training images (2560)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-2, help="learning rate (0.01: few steps need large ones)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{measure.machine()}; {options.model}, {options.images} images, {options.epochs} epochs", flush=True)
    spreads, differences = [], []
    for method, ratio in CELLS:
        cell = Cell("shapes10" if options.digits else "cifar10", options.model, method, ratio, options.seeds[0],
                    options.epochs, options.rate, train_images=options.images)
        exact = [top1(replace(cell, seed=seed), options, "float32") for seed in options.seeds]
        rounded = top1(cell, options, "bf16")
        spreads.append(max(exact) - min(exact))
        differences.append(abs(rounded - exact[0]))
        print(f"{cell}: float32 {', '.join(f'{value:.2f}' for value in exact)} % "
              f"(seeds {', '.join(map(str, options.seeds))}), bf16 {rounded:.2f} %", flush=True)
    print(f"largest difference by precision {max(differences):.2f} points, by seed {max(spreads):.2f}: "
          f"{'within' if max(differences) <= max(spreads) else 'NOT within'} what a seed moves")


def top1(cell: Cell, options, precision: str) -> float:
    record = experiment.run(cell, options.data, options.device, precision=precision)
    return 100 * record.history[-1]["top1"] / record.test_images


if __name__ == "__main__":
    measure.guarded(main)

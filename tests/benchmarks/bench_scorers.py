"""Every scorer and every kind of mask, in multiples of one float32 forward-backward pass of 128 images on that network.

    python -m tests.benchmarks.bench_scorers                     # CNN, VGG-16, ResNet-56; float32 and float64
    python -m tests.benchmarks.bench_scorers --models resnet56 --items grasp synflow-rounds --dtypes float32
    python -m tests.benchmarks.bench_scorers --items obd-2048 --rounds 1          # minutes

The unit is measured in the same process, by turns with the item: seconds do not travel between machines, ratios do.
Peak memory is what the process took on top of network, images and one such pass. Images are the drawn stand-ins: speed
does not depend on what they show. Targets are half of what the methods' official implementations take.
"""

import threading
import time
from collections.abc import Callable
from statistics import median

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib import data, methods, models, pruning
from lib.scorers import SCORERS
from tests.benchmarks import measure

DATASETS = {"cnn": "digits"}   # else shapes10
# (item, model, dtype) -> the most passes it may take; model or dtype None: any.
TARGETS = {
    ("grasp", None, "float32"): 3.5, ("magnitude", None, "float32"): 1.2, ("gradient", None, "float32"): 1.2,
    ("activation", None, "float32"): 1.2, ("snip", None, "float32"): 1.2, ("lap", None, "float32"): 1.2,
    ("top-k", "vgg16", "float64"): 0.13, ("lamp-mask", "vgg16", "float64"): 1.35,
    ("synflow-rounds", "resnet56", "float64"): 4, ("synflow-rounds", "vgg16", "float64"): 17,
    ("obd-2048", "resnet56", None): 190, ("obd-2048", "vgg16", None): 150,
}
SCORES = ("magnitude", "gradient", "activation", "lap", "lamp", "snip", "grasp", "synflow", "obd")
ITEMS = (*SCORES, "top-k", "lamp-mask", "grasp-run-mask", "magnitude-run-mask", "synflow-rounds")


def network(name: str) -> nn.Module:
    model = models.build(name)
    models.initialise(model, "own", torch.Generator().manual_seed(42))
    return model


def item(name: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], object]:
    """What is timed, ready to be called; masks at r = 16, from a model and inputs of the type that is asked for."""
    row = {"lamp-mask": "LAMP", "grasp-run-mask": "GraSP@run", "magnitude-run-mask": "GlobalMag@run",
           "synflow-rounds": "SynFlow"}.get(name)
    if row == "SynFlow":
        return lambda: pruning.masks(model, row, None, None, 16)
    if row:
        method = methods.get(row)
        scores = pruning.score(model, method, inputs, targets, torch.Generator().manual_seed(0)) if "run" in name else None

        def mask() -> object:
            used = scores or pruning.score(model, method, None, None, torch.Generator())
            return pruning.select(model, method, used, 16, None)

        return mask
    if name == "top-k":
        flat = torch.cat([score.flatten() for score in SCORERS["gradient"](model, inputs, targets).values()])
        return lambda: pruning.top(flat, len(flat) // 16)
    model.train(name not in ("obd", "obd-2048", "synflow"))
    scorer = SCORERS["obd" if name == "obd-2048" else name]

    def score() -> object:
        from lib.scorers import obd
        obd._last.clear()   # else the second turn would find the curvature of the first
        return scorer(model, inputs, targets)

    return score


def timed(options, model_name: str, name: str, dtype: str) -> tuple[list[float], float, float]:
    """In a process of its own: the item's passes, turn by turn, the seconds of a pass, and the item's peak in MB."""
    torch.set_num_threads(options.threads)
    images = data.load(DATASETS.get(model_name, "shapes10"))
    index = torch.arange(2048 if name == "obd-2048" else 128) % len(images.train_labels)
    inputs, targets = images.normalise(images.train_images[index]), images.train_labels[index]
    unit_model, model = network(model_name).train(), network(model_name).to(getattr(torch, dtype))
    parameters = list(unit_model.parameters())

    def unit() -> object:
        return torch.autograd.grad(cross_entropy(unit_model(inputs[:128]), targets[:128]), parameters)

    run = item(name, model, inputs.to(getattr(torch, dtype)), targets)
    unit()
    before = psutil.Process().memory_info().rss
    with _Peak() as peak:
        run()
    ratios, seconds = [], []
    for _ in range(options.rounds):
        each = []
        for side in (unit, run, unit):
            began = time.perf_counter()
            side()
            each.append(time.perf_counter() - began)
        seconds.append((each[0] + each[2]) / 2)
        ratios.append(each[1] / seconds[-1])
    return ratios, median(seconds), (peak.highest - before) / 2**20


class _Peak:
    """The process's highest resident memory while it is open, looked at every 5 ms."""

    def __enter__(self):
        self.highest, self._open = 0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while self._open:
            self.highest = max(self.highest, process.memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_) -> None:
        self._open = False
        self._thread.join()


def target(name: str, model: str, dtype: str) -> float | None:
    return next((limit for (one, other, kind), limit in TARGETS.items()
                 if one == name and other in (None, model) and kind in (None, dtype)), None)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["cnn", "vgg16", "resnet56"])
    parser.add_argument("--items", nargs="+", default=list(ITEMS), choices=[*ITEMS, "obd-2048"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"], choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1, help="of each side (1, as a cell runs)")
    options = parser.parse_args()
    print(f"{measure.machine()}; {options.threads} thread(s); masks at r = 16\n")
    print(f"{'network':9} {'item':19} {'type':8} {'passes':>26} {'target':>7}         {'peak MB':>8}   a pass takes")
    for model in options.models:
        for name in options.items:
            for dtype in options.dtypes:
                with measure.process() as alone:
                    ratios, seconds, peak = alone.submit(timed, options, model, name, dtype).result()
                limit = target(name, model, dtype)
                verdict = "" if limit is None else "met" if median(ratios) <= limit else "missed"
                print(f"{model:9} {name:19} {dtype:8} {measure.middle(ratios):>26} {limit or '':>7} "
                      f"{verdict:7} {peak:8.0f}   {seconds:.3f} s", flush=True)


if __name__ == "__main__":
    measure.guarded(main)

"""How much of a test's failure is the running statistics' (`lib.shift`): a VGG-16, trained a little, tested in five ways.

    python -m tests.benchmarks.bench_shift --data DIR
    python -m tests.benchmarks.bench_shift --data DIR --method GraSP@run --ratio 32

Statistics are the running ones or the test batch's own, dropout is off or on; and at last the running ones are collected
anew, over training images, with dropout off: the weights and the mask stay what they are in all five.
"""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib import experiment, trainer
from lib.experiment import Cell
from tests.benchmarks import measure

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--method", default="Dense", help="of the mask (Dense)")
    parser.add_argument("--ratio", type=float, default=1, help="its compression (1)")
    parser.add_argument("--width", type=float, default=0.25, help="of the network (0.25)")
    parser.add_argument("--images", type=int, default=12800, help="training images (12800), and a tenth to test")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    images = measure.images(options, options.images, options.images // 10, "cifar10")
    cell = Cell("shapes10" if options.digits else "cifar10", "vgg16", options.method, options.ratio, 42, options.epochs,
                learning_rate=1e-3, width=options.width, train_images=options.images)
    model = experiment.network(cell, images)
    history = trainer.train(model, experiment.masks_of(cell, model, images), images, epochs=cell.epochs, batch_size=128,
                            learning_rate=cell.learning_rate, generator=experiment.generator(cell, "training"))
    print(f"{measure.machine()}; {cell}, width {cell.width:g}, {options.images} images, {cell.epochs} epochs, "
          f"training loss {history[-1]['train_loss']:.3f}")
    inputs = images.normalise(images.test_images)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for own, dropped in product((False, True), repeat=2):
        print(f"{'batch' if own else 'running'} statistics, dropout {'on' if dropped else 'off'}: "
              f"{tested(model, inputs, images.test_labels, own, dropped)}")
        model.load_state_dict(state)
    again = history[-1]["recollected"]
    print(f"statistics collected anew, dropout off: top-1 {100 * again['top1'] / len(images.test_labels):.1f} %, "
          f"loss {again['test_loss']:.3f}")


@torch.no_grad()
def tested(model: nn.Module, inputs: Tensor, labels: Tensor, own: bool, dropped: bool) -> str:
    """Top-1 and loss: BatchNorm with each batch's own statistics or the running ones, with dropout or without."""
    _set(model, own, dropped)
    logits = torch.cat([model(batch) for batch in inputs.split(256)])
    top1 = 100 * float((logits.argmax(1) == labels).float().mean())
    return f"top-1 {top1:.1f} %, loss {float(cross_entropy(logits, labels)):.3f}"


def _set(model: nn.Module, own: bool, dropped: bool) -> None:
    for layer in model.modules():
        layer.training = isinstance(layer, NORMS) and own or isinstance(layer, nn.Dropout) and dropped


if __name__ == "__main__":
    measure.guarded(main)

"""SNIP and GraSP as an earlier state of the released code had them, on VGG-16 and CIFAR-10: see `lib.earlier`.

    python -m tests.benchmarks.bench_earlier --data DIR --store outputs/paper/earlier.jsonl --device cuda

By the recipe of the paper profile, in bf16 as its store. Fewer epochs are the beginning of the same cells.
"""

from lib import earlier, methods, sweep
from lib.experiment import Cell
from lib.store import Store
from tests.benchmarks import measure


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--store", required=True, help="where the records go")
    parser.add_argument("--epochs", type=int, default=25, help="(25)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[32, 64], help="(32 64)")
    parser.add_argument("--images", type=int, help="training images (all)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    store = Store(options.store)
    cells = [Cell("shapes10" if options.digits else "cifar10", "vgg16", method.name, ratio, 42, options.epochs, 1e-3,
                  train_images=options.images) for method in methods.EARLIER.values() for ratio in options.ratios]
    sweep.run(cells, store, data_root=options.data, device=options.device, precision="bf16",
              stack=1 if options.device == "cpu" else len(cells), workers=None if options.device == "cpu" else 1)
    table = earlier.comparison(store.records.values())
    print(f"\n{table.caption}\n{table.body.to_string(index=False)}")


if __name__ == "__main__":
    measure.guarded(main)

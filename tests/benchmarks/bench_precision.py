"""What bf16 does to a training: some cells in float32 under one seed and in bf16 under several, kept and compared.

    python -m tests.benchmarks.bench_precision --data DIR --store outputs/paper/precision.jsonl --device cuda

Only their first epochs: the beginning of a cell does not depend on how many will follow (`lib.precision`). bf16 goes one
epoch further than float32, because a store keeps one record of a cell. What the store has is not computed again, so the two
halves can be run on two machines and merged: `--only float32` on a processor, `--only bf16` on a card.
"""

from lib import precision, sweep
from lib.experiment import Cell
from lib.store import Store
from tests.benchmarks import measure

CELLS = {"resnet56": (("Dense", 1), ("Random@run", 32), ("SNIP@run", 32)),
         "vgg16": (("Dense", 1), ("GlobalGrad@run", 32), ("SNIP@run", 32))}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--store", required=True, help="where the records go")
    parser.add_argument("--model", choices=CELLS, default="resnet56", help="the network (resnet56)")
    parser.add_argument("--images", type=int, help="training images (all)")
    parser.add_argument("--epochs", type=int, default=3, help="of float32 (3)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (0.001)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="of bf16; float32 takes the first")
    parser.add_argument("--only", choices=("float32", "bf16"), nargs="+", default=["float32", "bf16"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{measure.machine()}; {options.model}, {options.epochs} epochs", flush=True)
    store = Store(options.store)
    for kind, seeds, epochs in (("float32", options.seeds[:1], options.epochs), ("bf16", options.seeds, options.epochs + 1)):
        cells = [Cell("shapes10" if options.digits else "cifar10", options.model, method, ratio, seed, epochs, options.rate,
                      train_images=options.images) for seed in seeds for method, ratio in CELLS[options.model]]
        if kind in options.only:
            sweep.run(cells, store, workers=1, data_root=options.data, device=options.device, precision=kind,
                      stack=len(CELLS[options.model]))
    table = precision.comparison(store.records.values())
    print(f"\n{table.caption}\n{table.body.to_string(index=False)}")


if __name__ == "__main__":
    measure.guarded(main)

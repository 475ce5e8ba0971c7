"""Stacked training: each copy is what it would be alone, whatever its neighbours do."""

import math
from dataclasses import replace

import pytest
import torch

from lib import UserError, experiment, models, pruning, stack, trainer
from lib.experiment import Cell
from tests.test_trainer import noise, seeded

METHODS = ("GlobalMag", "Random", "LayerMag")


def networks(name, count=3, dtype=torch.float64):
    made = []
    for seed in range(count):
        model = models.build(name, 3, 0.1)
        models.initialise(model, "own", seeded(seed))
        made.append(model.to(dtype))
    return made


def sparse(made):
    return [pruning.masks(model, method, None, None, 2, seeded(7)) for model, method in zip(made, METHODS)]


def alone(made, masks, data, **options):
    return [trainer.train(model, its, data, generator=seeded(5), **options) for model, its in zip(made, masks)]


RECIPE = {"epochs": 2, "learning_rate": 0.01, "batch_size": 16}


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Batches in float64: then rounding stays below 1e-10, and whatever is more is a mistake."""
    plain = trainer.Data.normalise
    monkeypatch.setattr(trainer.Data, "normalise", lambda self, pixels: plain(self, pixels).double())


def test_copies_in_bf16_are_what_each_is_alone_in_bf16(monkeypatch):
    monkeypatch.undo()
    data = noise((3, 32, 32), augmented=True)
    together, apart = networks("resnet20", dtype=torch.float32), networks("resnet20", dtype=torch.float32)
    masks, recipe = sparse(together), RECIPE | {"precision": "bf16"}
    histories = stack.train(together, masks, data, generator=seeded(5), **recipe)
    for history, expected in zip(histories, alone(apart, masks, data, **recipe)):
        # 8 bits, summed in another order.
        assert history[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], rel=0.02)
    assert all(value.dtype == torch.float32 for model in together for value in model.parameters())


@pytest.mark.parametrize("name, shape", [("cnn", (1, 28, 28)), ("vgg16", (3, 32, 32)), ("resnet20", (3, 32, 32))])
def test_each_copy_is_what_it_is_alone(name, shape):
    data = noise(shape, augmented=shape[0] == 3)
    together, apart = networks(name), networks(name)
    masks = sparse(together)
    histories = stack.train(together, masks, data, generator=seeded(5), **RECIPE)
    for history, expected in zip(histories, alone(apart, masks, data, **RECIPE)):
        assert [{k: v for k, v in entry.items() if k in ("epoch", "top1", "top5")} for entry in history] == [
            {k: v for k, v in entry.items() if k in ("epoch", "top1", "top5")} for entry in expected]
        for entry, other in zip(history, expected):
            assert entry["test_loss"] == pytest.approx(other["test_loss"], rel=1e-6)
            assert (entry["train_loss"] is None) == (other["train_loss"] is None)
            assert entry["train_loss"] is None or entry["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
    for model, expected in zip(together, apart):
        for (key, value), other in zip(model.state_dict().items(), expected.state_dict().values()):
            assert torch.allclose(value.double(), other.double(), rtol=1e-7, atol=1e-9), key
    for model, its in zip(together, masks):
        assert all(bool((weight[~its[key]] == 0).all()) for key, weight in pruning.prunable(model).items())


def test_a_copy_that_diverges_does_not_touch_its_neighbours():
    data = noise((3, 32, 32), augmented=True)
    together, apart = networks("resnet20"), networks("resnet20")
    masks = sparse(together)
    with torch.no_grad():
        next(together[1].parameters()).fill_(math.nan)
    histories = stack.train(together, masks, data, generator=seeded(5), **RECIPE)
    assert histories[1].diverged == 0 and len(histories[1]) == 1
    expected = alone(apart, masks, data, **RECIPE)
    for copy in (0, 2):
        assert histories[copy].diverged is None
        assert histories[copy][-1]["test_loss"] == pytest.approx(expected[copy][-1]["test_loss"], rel=1e-6)


def test_a_device_that_is_full_trains_two_halves(monkeypatch):
    data, sizes, plain = noise((1, 28, 28), augmented=False), [], stack._train

    def small(models, *rest):
        sizes.append(len(models))
        if len(models) > 1:
            with torch.no_grad():   # it came some way before the memory ran out
                next(models[0].parameters()).add_(1)
            raise torch.OutOfMemoryError
        return plain(models, *rest)

    together, apart = networks("cnn"), networks("cnn")
    masks = sparse(together)
    monkeypatch.setattr(stack, "_train", small)
    histories = stack.train(together, masks, data, generator=seeded(5), **RECIPE)
    assert sizes == [3, 1, 2, 1, 1]
    for history, expected in zip(histories, alone(apart, masks, data, **RECIPE)):
        assert history[-1]["test_loss"] == pytest.approx(expected[-1]["test_loss"], rel=1e-9)


def test_masks_that_do_not_fit_are_refused():
    made = networks("cnn", 1)
    with pytest.raises(UserError, match="do not fit"):
        stack.train(made, [{}], noise((1, 28, 28), False), generator=seeded(5), **RECIPE)


def test_an_unknown_precision_is_refused():
    made = networks("cnn", 1)
    with pytest.raises(UserError, match="Unknown precision 'fp8'"):
        stack.train(made, sparse(made), noise((1, 28, 28), False), generator=seeded(5), precision="fp8", **RECIPE)


def test_cells_together_give_the_records_of_cells_alone(monkeypatch):
    monkeypatch.undo()   # as cells run, in float32
    cell = Cell("digits", "cnn", "SNIP", 4, 42, 2, 0.01, width=0.25, train_images=256)
    cells = [cell, replace(cell, method="Random@run"), replace(cell, method="Dense", compression=1),
             replace(cell, compression=2)]
    together = experiment.run_together(cells)
    assert [record.cell for record in together] == cells and {record.run["stacked"] for record in together} == {4}
    for record, one in zip(together, cells):
        expected = experiment.run(one)
        assert record.report == expected.report and record.key == expected.key
        # float32 sums in another order: losses to four digits, and of 540 test images at most a few on the edge.
        assert record.history[-1]["test_loss"] == pytest.approx(expected.history[-1]["test_loss"], rel=1e-4)
        assert abs(record.history[-1]["top1"] - expected.history[-1]["top1"]) <= 3
    with pytest.raises(UserError, match="must share"):
        experiment.run_together([cell, replace(cell, seed=43)])

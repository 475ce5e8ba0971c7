"""Lock-step training: each copy is what it would be alone, bit for bit, whatever its neighbours do."""

import math
from dataclasses import replace

import pytest
import torch

from lib import UserError, experiment, models, pruning, stack, trainer
from lib.experiment import Cell
from tests.test_trainer import noise, seeded

METHODS = ("GlobalMag", "Random", "LayerMag")


def networks(name, count=3):
    made = []
    for seed in range(count):
        model = models.build(name, 3, 0.1)
        models.initialise(model, "own", seeded(seed))
        made.append(model)
    return made


def sparse(made):
    return [pruning.masks(model, method, None, None, 2, seeded(7)) for model, method in zip(made, METHODS)]


def alone(made, masks, data, **options):
    return [trainer.train(model, its, data, generator=seeded(5), learning_rate=rate, **options)
            for model, its, rate in zip(made, masks, RATES)]


RECIPE = {"epochs": 2, "batch_size": 16}
RATES = [0.01, 0.02, 0.01]


@pytest.mark.parametrize("precision", trainer.PRECISIONS)
@pytest.mark.parametrize("name, shape", [("cnn", (1, 28, 28)), ("vgg16", (3, 32, 32)), ("resnet20", (3, 32, 32))])
def test_each_copy_is_what_it_is_alone_bit_for_bit(name, shape, precision):
    data = noise(shape, augmented=shape[0] == 3)
    together, apart = networks(name), networks(name)
    masks = sparse(together)
    histories = stack.train(together, masks, data, generator=seeded(5), learning_rates=RATES, precision=precision, **RECIPE)
    assert histories == alone(apart, masks, data, precision=precision, **RECIPE)
    for model, expected, its in zip(together, apart, masks):
        for (key, value), other in zip(model.state_dict().items(), expected.state_dict().values()):
            assert value.dtype != torch.bfloat16 and torch.equal(value, other), key
        assert all(bool((weight[~its[key]] == 0).all()) for key, weight in pruning.prunable(model).items())


def test_the_global_generator_is_left_as_it_was():
    made, before = networks("vgg16"), torch.get_rng_state()
    stack.train(made, sparse(made), noise((3, 32, 32), augmented=True), generator=seeded(5), learning_rates=RATES, **RECIPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_that_diverges_does_not_touch_its_neighbours():
    data = noise((3, 32, 32), augmented=True)
    together, apart = networks("resnet20"), networks("resnet20")
    masks = sparse(together)
    with torch.no_grad():
        next(together[1].parameters()).fill_(math.nan)
    histories = stack.train(together, masks, data, generator=seeded(5), learning_rates=RATES, **RECIPE)
    assert histories[1].diverged == 0 and len(histories[1]) == 1
    expected = alone(apart, masks, data, **RECIPE)
    for copy in (0, 2):
        assert histories[copy].diverged is None and histories[copy] == expected[copy]


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
    histories = stack.train(together, masks, data, generator=seeded(5), learning_rates=RATES, **RECIPE)
    assert sizes == [3, 1, 2, 1, 1]
    assert histories == alone(apart, masks, data, **RECIPE)


def test_masks_that_do_not_fit_are_refused():
    made = networks("cnn", 1)
    with pytest.raises(UserError, match="do not fit"):
        stack.train(made, [{}], noise((1, 28, 28), False), generator=seeded(5), learning_rates=RATES[:1], **RECIPE)


def test_an_unknown_precision_is_refused():
    made = networks("cnn", 1)
    with pytest.raises(UserError, match="Unknown precision 'fp8'"):
        stack.train(made, sparse(made), noise((1, 28, 28), False), generator=seeded(5), learning_rates=RATES[:1],
                    precision="fp8", **RECIPE)


def test_cells_together_give_the_records_of_cells_alone():
    cell = Cell("digits", "cnn", "SNIP", 4, 42, 2, 0.01, width=0.25, train_images=256)
    cells = [cell, replace(cell, method="Random@run"), replace(cell, method="Dense", compression=1),
             replace(cell, compression=2), replace(cell, learning_rate=0.02)]
    together = experiment.run_together(cells)
    assert [record.cell for record in together] == cells and {record.run["stacked"] for record in together} == {5}
    for record, one in zip(together, cells):
        expected = experiment.run(one)
        assert (record.report, record.key, record.history) == (expected.report, expected.key, expected.history)
    with pytest.raises(UserError, match="must share"):
        experiment.run_together([cell, replace(cell, seed=43)])

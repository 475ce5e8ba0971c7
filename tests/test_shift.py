"""Networks that learn and are tested at chance: what is counted, and that dropout before BatchNorm is a cause."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import experiment, models, shift
from lib.experiment import Cell, Record

CELL = Cell("cifar10", "vgg16", "SNIP@run", 32, 42, 2, 1e-3)
GUESS = math.log(10)


def record(losses, top1, run=None, again=None, **changes):
    """1000 test images; training losses as shares of that of guessing."""
    history = [{"epoch": 0, "train_loss": None, "top1": 100, "test_loss": GUESS, "top5": 500}]
    history += [{"epoch": epoch, "train_loss": share and share * GUESS, "top1": top, "test_loss": GUESS, "top5": 500}
                for epoch, (share, top) in enumerate(zip(losses, top1), 1)]
    cell = replace(CELL, epochs=len(losses), **changes)
    if again is not None:
        history[-1]["recollected"] = {"top1": again, "top5": 500, "test_loss": GUESS}
    return Record(cell.key, experiment.VERSION, cell, {}, history, 1000, run or {})


def test_epochs_at_chance_count_only_while_the_loss_is_below_guessing():
    table = shift.silent([record([0.95, 0.8, 0.7, 0.6], [100, 105, 100, 300])], 1e-3)
    assert table.body.iloc[0].tolist() == ["VGG-16 on CIFAR-10", "1", "1", "2", "0", "–", "–", "–"]


def test_a_test_with_recollected_statistics_stands_beside_the_other():
    records = [record([0.5, 0.5], [400, 100], again=300), record([0.5], [400], again=390), record([0.5], [400], again=500),
               record([0.95], [100], again=900), record([0.5], [400])]     # one has not learned, one has no such test
    table = shift.silent(records, 1e-3)
    assert table.body.iloc[0].tolist()[-2:] == ["3", "+10.00"]
    assert "; tested with statistics collected without dropout, 3 of them move by +10.00 points (median)." in table.caption
    assert "tested with" not in shift.silent(records[-1:], 1e-3).caption


def test_what_learned_and_is_silent_at_the_end_is_named():
    table = shift.silent([record([0.8, 0.5], [100, 105]), record([0.8, 0.5], [100, 106], method="LAMP@run")], 1e-3)
    assert table.body.iloc[0].tolist() == ["VGG-16 on CIFAR-10", "2", "2", "1.5", "1", "SNIP@run at r = 32 (1.15)", "–", "–"]
    assert "2 of 2 trained cells learned" in table.caption
    assert "; 1 at chance after the last epoch too (training loss in brackets): SNIP@run" in table.caption


@pytest.mark.parametrize("share", [1, 0.91, None])
def test_what_has_not_learned_is_no_surprise(share):
    table = shift.silent([record([0.8, share], [100, 100])], 1e-3)
    assert table.body.iloc[0].tolist() == ["VGG-16 on CIFAR-10", "1", "0", "–", "0", "–", "–", "–"]


def test_networks_are_apart_and_twins_masks_and_the_other_rate_are_not_counted():
    table = shift.silent([record([0.5], [500]), record([0.5], [500], dataset="mnist", model="cnn"),
                          record([0.5], [100], {"trained_as": "LAMP@run"}), record([], []),
                          record([0.5], [500], learning_rate=1e-4)], 1e-3)
    assert table.body["network"].tolist() == ["VGG-16 on CIFAR-10", "CNN on MNIST"]
    assert table.body["cells trained"].tolist() == ["1", "1"] and "median of" not in table.caption
    assert "No cell has been trained" in shift.silent([], 1e-3).caption


def test_methods_that_were_tested_twice_stand_in_the_order_of_the_second_test():
    records = [record([0.5], [400], again=450, seed=42), record([0.7], [200], again=350, seed=43),
               record([0.5], [100], again=600, method="GraSP@run"), record([0.95], [100], again=900, method="LAMP@run"),
               record([0.5], [100], method="Random@run"), record([0.6], [200], again=100, compression=64.0),
               record([0.5], [100], {"trained_as": "LAMP@run"}, again=900), record([0.5], [1], again=2, learning_rate=1e-4)]
    table = shift.retested(records, 1e-3)
    loss = [f"{share * GUESS:.2f}" for share in (0.5, 0.6, 0.6)]
    assert table.body.to_numpy().tolist() == [["VGG-16 on CIFAR-10", "32", "GraSP@run", loss[0], "10.00", "60.00"],
                                              ["VGG-16 on CIFAR-10", "32", "SNIP@run", loss[1], "30.00", "40.00"],
                                              ["VGG-16 on CIFAR-10", "64", "SNIP@run", loss[2], "20.00", "10.00"]]
    assert "VGG-16 on CIFAR-10: 3 methods and ratios, rank correlation of the two tests -0.50." in table.caption
    assert shift.told(records, 1e-3) == (
        "Tested anew with statistics collected without dropout, 3 that learned move by +10.0 points of top-1 (median), "
        "GraSP@run at r = 32 from 10.0 to 60.0.")


def test_a_published_method_is_told_as_such():
    told = shift.told([record([0.5], [400], again=500, method="LAMP")], 1e-3)
    assert ", LAMP as published at r = 32 from 40.0 to 50.0." in told


def test_without_a_second_test_or_a_rank_nothing_is_made_up():
    assert "There is none." in shift.retested([record([0.5], [400])], 1e-3).caption
    assert shift.told([], 1e-3) == "No network that learned has been tested twice."
    alike = [record([0.5], [100], again=again, compression=r) for again, r in ((300, 2.0), (400, 4.0), (500, 8.0))]
    two = [alike[0], record([0.5], [200], again=400, compression=4.0)]
    assert all("rank" not in shift.retested(records, 1e-3).caption for records in (alike, two))


def test_a_signal_of_vgg16_shrinks_in_tests_and_one_without_dropout_does_not():
    """Of each BatchNorm, the variance that it met in training over the one that it meets in a test, by layers."""
    def ratios(dropped: bool) -> list[float]:
        model = models.build("vgg16", width=0.25)
        models.initialise(model, "own", torch.Generator().manual_seed(0))
        for layer in model.modules():
            if isinstance(layer, nn.Dropout) and not dropped:
                layer.p = 0.0
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None   # the mean over all batches
        images, met = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(1)), []
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(2)
            model.train()(images)
            for layer in (each for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
                layer.register_forward_pre_hook(
                    lambda layer, inputs: met.append(float((layer.running_var / inputs[0].var((0, 2, 3))).median())))
            model.eval()(images)
        return met

    with_dropout, without = ratios(True), ratios(False)
    assert max(abs(ratio - 1) for ratio in without) < 0.1
    assert with_dropout[0] == pytest.approx(1, abs=0.1) and with_dropout[1] > 1.1 and with_dropout[-1] > 3

"""Training: one step by hand, pruned weights, every image once, what randomness it uses, counts by brute force."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lib import UserError, models, pruning, trainer
from lib.data import Data
from tests.nets import chain

TRAIN, TEST, BATCH = 50, 300, 16


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(train=TRAIN, test=TEST, classes=3, augmented=False):
    generator = seeded(1)
    pixels = lambda count: torch.randint(256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = lambda count: torch.randint(classes, (count,), generator=generator)
    return Data("noise", pixels(train), labels(train), pixels(test), labels(test), tuple(map(str, range(classes))),
                (0.5,), (0.25,), augmented, stand_in=True)


def noise(shape, augmented, train=40, test=50):
    data = images(train, test, augmented=augmented)
    draw = lambda count: torch.randint(256, (count, *shape), generator=seeded(2), dtype=torch.uint8)
    channels = shape[0]
    return replace(data, train_images=draw(train), test_images=draw(test), mean=(0.5,) * channels, std=(0.25,) * channels)


def network(dropout=False):
    torch.manual_seed(3)
    net = chain(batchnorm=dropout)
    if dropout:
        net.insert(len(net) - 1, nn.Dropout(0.5))
    return net


def half(net):
    return pruning.masks(net, "GlobalMag", None, None, 2)


def train(net, data=None, masks=None, seed=5, **options):
    options = {"epochs": 2, "learning_rate": 0.05, "batch_size": BATCH} | options
    return trainer.train(net, masks or half(net), data or images(), generator=seeded(seed), **options)


def values(net):
    return torch.cat([value.detach().flatten() for value in net.state_dict().values()])


# --- steps

def test_steps_are_nesterovs_on_masked_gradients():
    net, data, rate = network(), images(train=BATCH), 0.3
    masks, twin = half(net), copy.deepcopy(net)
    weights = dict(twin.named_parameters())
    kept = {name: masks[name] if name in masks else torch.ones_like(value) for name, value in weights.items()}
    with torch.no_grad():
        for name, value in weights.items():
            value *= kept[name]
    velocity = dict.fromkeys(weights, 0)
    for _ in range(3):
        loss = cross_entropy(twin(data.normalise(data.train_images)), data.train_labels)
        slopes = dict(zip(weights, torch.autograd.grad(loss, weights.values())))
        with torch.no_grad():
            for name, value in weights.items():
                slope = slopes[name] * kept[name]
                velocity[name] = 0.9 * velocity[name] + slope
                value -= rate * (slope + 0.9 * velocity[name])
    train(net, data, masks, epochs=3, learning_rate=rate)
    assert torch.allclose(values(net), values(twin), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_bf16_changes_a_step_as_much_as_rounding_the_images_to_its_eight_bits_does(name, monkeypatch):
    data, plain = noise((3, 32, 32), augmented=True, train=32), Data.normalise
    rounded = lambda self, pixels: plain(self, pixels) * (1 + 2**-8 * torch.randn(pixels.shape, generator=seeded(4)))

    def step(precision="float32"):
        net = models.build(name, 3, 0.25)
        models.initialise(net, "own", seeded())
        masks, before = half(net), copy.deepcopy(net)
        history = train(net, data, masks, epochs=1, batch_size=32, learning_rate=1e-3, precision=precision)
        assert all(value.dtype == torch.float32 for value in net.parameters())
        assert all((weight[~masks[key]] == 0).all() for key, weight in pruning.prunable(net).items())
        change = [(after - first)[after != 0] for after, first in zip(net.parameters(), before.parameters())]
        return torch.cat(change).detach(), history[-1]["train_loss"]

    (exact, loss), (bf16, bf16_loss) = step(), step("bf16")
    monkeypatch.setattr(Data, "normalise", rounded)
    noisy, _ = step()
    assert 0.3 < float((bf16 - exact).norm() / (noisy - exact).norm()) < 3
    assert bf16_loss == pytest.approx(loss, rel=0.02)


def test_pruned_weights_are_zero_at_every_epoch_and_the_others_learn():
    net = network()
    masks, start, seen = half(net), copy.deepcopy(net), []
    zero = lambda: all(not pruning.prunable(net)[name][~mask].any() for name, mask in masks.items())
    train(net, masks=masks, epochs=3, said=lambda entry: seen.append(zero()))
    assert seen == [True] * 4 and any(not mask.all() for mask in masks.values())
    moved = [now != before for now, before in zip(pruning.prunable(net).values(), pruning.prunable(start).values())]
    assert all((change & mask).any() for change, mask in zip(moved, masks.values()))


@pytest.mark.parametrize("train_images,batch_size,sizes", [(50, 16, [16, 16, 16, 2]), (32, 16, [16, 16]), (5, 16, [5])])
def test_every_image_is_seen_once_an_epoch_the_last_batch_included(monkeypatch, train_images, batch_size, sizes):
    seen, plain = [], trainer.batch
    monkeypatch.setattr(trainer, "batch", lambda data, index, g: seen.append(index) or plain(data, index, g))
    train(network(), images(train=train_images), batch_size=batch_size)
    assert [len(index) for index in seen] == 2 * sizes
    first, second = torch.cat(seen[:len(sizes)]), torch.cat(seen[len(sizes):])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(train_images))
    assert not torch.equal(first, second) and first.tolist() != list(range(train_images))


def test_a_batch_is_the_normalised_images_and_their_labels():
    data, index = images(), torch.tensor([4, 0, 7])
    inputs, labels = trainer.batch(data, index, seeded())
    assert torch.allclose(inputs, (data.train_images[index].double() / 255 - 0.5).div(0.25).float(), atol=1e-6)
    assert torch.equal(labels, data.train_labels[index]) and inputs.dtype == torch.float32


@pytest.mark.parametrize("augmented", [True, False])
def test_images_are_augmented_only_where_their_set_is(monkeypatch, augmented):
    seen = []
    monkeypatch.setattr(trainer, "augment", lambda pixels, g: seen.append(pixels) or 255 - pixels)
    data = images(augmented=augmented)
    everything = torch.arange(TRAIN)
    plain, changed = trainer.batch(data, everything, None)[0], trainer.batch(data, everything, seeded())[0]
    assert len(seen) == augmented and torch.equal(plain, changed) != augmented
    train(network(), data)
    assert len(seen) == (1 + 2 * math.ceil(TRAIN / BATCH)) * augmented
    assert all(pixels.dtype == torch.uint8 for pixels in seen)


# --- history

def test_epoch_0_is_the_untrained_pruned_network():
    net = network()
    masks, twin = half(net), copy.deepcopy(net)
    history = train(net, masks=masks)
    pruning.apply(twin, masks)
    assert history[0] == {"epoch": 0, "train_loss": None} | trainer.evaluate(twin, images())
    assert trainer.evaluate(net, images()) == {key: history[2][key] for key in ("test_loss", "top1", "top5")}


def test_every_epoch_is_recorded_and_said():
    said = []
    history = train(network(), epochs=3, said=lambda entry: said.append(dict(entry)))
    assert [list(entry) for entry in history] == [["epoch", "train_loss", "test_loss", "top1", "top5"]] * 4
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3] and said == history and history.diverged is None
    assert history[3]["train_loss"] < history[1]["train_loss"]


def test_no_epochs_only_evaluate():
    net = network()
    history = train(net, epochs=0)
    assert [entry["epoch"] for entry in history] == [0]


def test_the_training_loss_is_the_mean_over_images_not_over_batches():
    net, data = network(), images()
    history = train(net, data, epochs=1, learning_rate=1e-30)
    expected = cross_entropy(net(data.normalise(data.train_images)), data.train_labels).detach()
    assert history[1]["train_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_training_learns_what_can_be_learnt():
    data = images(train=64)
    data = replace(data, train_labels=data.train_images[:, 0, 0, 0].div(86, rounding_mode="floor").long())
    data = replace(data, test_images=data.train_images, test_labels=data.train_labels)
    net = network()
    history = train(net, data, {name: torch.ones_like(w, dtype=bool) for name, w in pruning.prunable(net).items()},
                    epochs=60)
    assert history[-1]["top1"] > 50 and history[0]["top1"] < 30


def test_a_loss_that_is_not_finite_stops_the_training_and_is_recorded():
    history = train(network(), epochs=9, learning_rate=1e30)
    assert history.diverged == 1 and len(history) == 2
    assert history[1]["train_loss"] is None and history[1]["test_loss"] is None
    json.dumps(history, allow_nan=False)


def test_weights_that_the_very_last_step_ruins_are_seen_on_the_test_images(monkeypatch):
    """The training loss is taken before each step, so it misses what the last one does."""
    net, step, taken = network(), torch.optim.SGD.step, []

    def ruin(self):
        step(self)
        taken.append(1)
        if len(taken) == 2:
            net[0].weight.data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.SGD, "step", ruin)
    history = train(net, images(train=8), epochs=1, batch_size=4)
    assert history.diverged == 1 and history[1]["train_loss"] is not None and history[1]["test_loss"] is None


# --- randomness

def test_twice_the_same_bit_for_bit_from_the_generator_alone():
    data, runs = images(augmented=True), []
    for global_seed, seed in [(1, 5), (2, 5), (2, 6)]:
        net = network(dropout=True)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        history = train(net, data, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append((history, values(net)))
    (one, first), (two, second), (_, third) = runs
    assert one == two and torch.equal(first, second) and not torch.equal(first, third)


def test_masks_do_not_move_the_order_of_the_images(monkeypatch):
    seen, plain = [], trainer.batch
    monkeypatch.setattr(trainer, "batch", lambda data, index, g: seen.append(index) or plain(data, index, g))
    net = network()
    for masks in (half(net), {name: torch.ones_like(mask) for name, mask in half(net).items()}):
        train(copy.deepcopy(net), images(augmented=True), masks)
    assert torch.equal(torch.cat(seen[:8]), torch.cat(seen[8:]))


# --- evaluation

class Fixed(nn.Module):
    """Looks its logits up by the first pixel of an image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, inputs):
        return self.logits[((inputs[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long()]


@pytest.mark.parametrize("classes", [3, 5, 20])
def test_top1_and_top5_are_counted_as_by_hand(classes):
    data, logits = images(classes=classes), torch.randn(256, classes, generator=seeded())
    loss, top1, top5 = 0.0, 0, 0
    for pixel, label in zip(data.test_images[:, 0, 0, 0].tolist(), data.test_labels.tolist()):
        row = logits[pixel].tolist()
        better = sum(value > row[label] for value in row)
        top1, top5 = top1 + (better == 0), top5 + (better < 5)
        loss += math.log(sum(math.exp(value - row[label]) for value in row)) / TEST
    found = trainer.evaluate(Fixed(logits), data)
    assert (found["top1"], found["top5"]) == (top1, top5) and found["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_evaluation_is_in_eval_mode_and_training_in_train_mode():
    net, data = network(dropout=True), images()
    modes = []
    net[1].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    train(net, data, epochs=1)
    passes = math.ceil(TEST / trainer.TEST_BATCH)
    again = [True] + [False] * passes    # with the statistics of one chunk
    assert modes == [False] * passes + [True] * math.ceil(TRAIN / BATCH) + [False] * passes + again
    net.eval()
    logits = net(data.normalise(data.test_images))
    assert trainer.evaluate(net, data)["top1"] == int((logits.argmax(1) == data.test_labels).sum())


@pytest.mark.parametrize("count, used", [(TRAIN, TRAIN), (128 + 1, 128)])     # a chunk of one image is left out
@pytest.mark.parametrize("channels", [False, True])
def test_a_network_with_dropout_and_batchnorm_is_tested_again_with_statistics_collected_without_dropout(count, used,
                                                                                                       channels):
    net, data = network(dropout=not channels), images(train=count)
    if channels:
        net = chain(batchnorm=True).insert(1, nn.Dropout2d(0.5))   # of whole channels
    history = train(net, data)
    assert ["recollected" in entry for entry in history] == [False, False, True]
    before = values(net)
    twin, inputs = copy.deepcopy(net), data.normalise(data.train_images[:used])
    for layer in twin:
        layer.train(isinstance(layer, nn.BatchNorm2d))
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0     # all images are one chunk, whose statistics stay
    with torch.no_grad():
        twin(inputs)
    assert history[-1]["recollected"] == trainer.evaluate(twin, data)
    assert history[-1]["recollected"]["test_loss"] != history[-1]["test_loss"] and torch.equal(values(net), before)


def test_what_has_no_dropout_or_was_not_trained_is_not_tested_again():
    assert not any("recollected" in entry for entry in train(network()))
    assert not any("recollected" in entry for entry in train(network(dropout=True), epochs=0))
    diverged = train(network(dropout=True), learning_rate=1e30)
    assert diverged.diverged is not None and "recollected" not in diverged[-1]


def test_masks_that_do_not_fit_are_refused_before_anything_moves():
    net = network()
    before = values(net)
    with pytest.raises(UserError, match="do not fit"):
        train(net, masks={"0.weight": torch.zeros(1, dtype=torch.bool)})
    assert torch.equal(values(net), before)


def test_an_unknown_precision_is_refused_before_anything_moves():
    net = network()
    before = values(net)
    with pytest.raises(UserError, match="'fp8': choose one of float32, bf16"):
        train(net, precision="fp8")
    assert torch.equal(values(net), before)


def test_a_network_that_does_not_fit_the_data_is_refused_before_anything_moves():
    net = network()
    small, few, double = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net).double()
    small.input_shape, few[-1] = (1, 2, 2), nn.Linear(net[-1].in_features, 2)
    for wrong, message in ((small, "images have shape"), (few, "there are 2 classes"), (double, "is torch.float64")):
        before = values(wrong)
        with pytest.raises(UserError, match=message):
            train(wrong)
        assert torch.equal(values(wrong), before)


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"batch_size": 0}, {"learning_rate": -0.1}, {"learning_rate": math.nan},
                                   {"learning_rate": math.inf}, {"precision": "fp8"}, {"epochs": 1.5}, {"epochs": "1"},
                                   {"batch_size": None}, {"learning_rate": "a"}])
def test_a_recipe_that_is_none_is_refused_before_anything_moves(wrong):
    net = network()
    before = values(net)
    with pytest.raises(UserError):
        train(net, **wrong)
    assert torch.equal(values(net), before)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("change, message", [
    (lambda images, labels: (images.float() / 255, labels), "must be uint8"),
    (lambda images, labels: (images, labels[1:]), "each with its label"),
    (lambda images, labels: (images[:0], labels[:0]), "at least one"),
    (lambda images, labels: (images, labels + 3), "labels go from")])
def test_images_and_labels_that_cannot_be_trained_on_are_refused_before_anything_moves(part, change, message):
    net, data = network(), images()
    changed = change(getattr(data, f"{part}_images"), getattr(data, f"{part}_labels"))
    before = values(net)
    with pytest.raises(UserError, match=message):
        train(net, replace(data, **{f"{part}_images": changed[0], f"{part}_labels": changed[1]}))
    assert torch.equal(values(net), before)


def test_a_frozen_network_is_refused_and_no_grad_around_does_not_matter():
    with pytest.raises(UserError, match="frozen"):
        train(network().requires_grad_(False))
    expected = train(network())
    with torch.no_grad():
        assert train(network()) == expected


@pytest.mark.parametrize("generator", [None, 42])
def test_without_a_generator_nothing_is_trained(generator):
    with pytest.raises(UserError, match="needs a torch.Generator"):
        trainer.train(net := network(), half(net), images(), epochs=1, learning_rate=0.1, generator=generator)


def test_a_last_batch_of_one_image_is_refused_where_batchnorm_follows_a_linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    for count, size in ((BATCH + 1, BATCH), (BATCH, 1)):
        with pytest.raises(UserError, match="last batch of one"):
            train(net, images(train=count), batch_size=size)
    assert len(train(net, images(train=BATCH + 2))) == 3 and len(train(net, images(train=BATCH + 1), epochs=0)) == 1


# --- interruptions

class Stopped(Exception):
    pass


def stop_after(epoch):
    def said(entry):
        if entry["epoch"] == epoch:
            raise Stopped
    return said


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0)
    return tmp_path / "checkpoints" / "cell.pt"


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_an_interrupted_training_goes_on_bit_for_bit(checkpoint, epoch):
    data = images(augmented=True)
    straight, net = network(dropout=True), network(dropout=True)
    whole = train(straight, data, epochs=4)
    with pytest.raises(Stopped):
        train(net, data, epochs=4, checkpoint=checkpoint, said=stop_after(epoch))
    assert checkpoint.exists() == (epoch > 1)   # the last epoch that was said had not been saved yet
    again, told = network(dropout=True), []
    history = train(again, data, epochs=4, checkpoint=checkpoint, said=told.append)
    assert history == whole and torch.equal(values(again), values(straight))
    assert [entry["epoch"] for entry in told] == ([*range(5)] if epoch == 1 else [*range(epoch, 5)])
    assert not checkpoint.exists() and not list(checkpoint.parent.glob("*.partial"))


@pytest.mark.parametrize("precision", trainer.PRECISIONS)
def test_so_does_one_in_another_layout_and_precision(checkpoint, precision):
    data = noise((3, 32, 32), augmented=True)

    def resnet():
        net = models.build("resnet20", 3, 0.25)
        models.initialise(net, "own", seeded())
        return net

    straight, net, again = resnet(), resnet(), resnet()
    whole = train(straight, data, epochs=3, precision=precision)
    with pytest.raises(Stopped):
        train(net, data, epochs=3, checkpoint=checkpoint, said=stop_after(2), precision=precision)
    history = train(again, data, epochs=3, checkpoint=checkpoint, precision=precision)
    assert history == whole and torch.equal(values(again), values(straight))


def test_short_trainings_write_no_checkpoint(checkpoint, monkeypatch):
    monkeypatch.setattr(trainer, "SAVE_EVERY", 60)
    train(network(), checkpoint=checkpoint)
    assert not checkpoint.parent.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_named(checkpoint, content):
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match="cell.pt is no checkpoint of this training.*delete it"):
        train(network(), checkpoint=checkpoint)


@pytest.mark.parametrize("change", [{"learning_rate": 99.0}, {"batch_size": 25}, {"precision": "bf16"}, {"epochs": 1},
                                    {"masks": "others"}])
def test_a_checkpoint_of_another_training_is_refused(checkpoint, change):
    with pytest.raises(Stopped):
        train(network(), epochs=4, checkpoint=checkpoint, said=stop_after(3))
    net = network()
    if "masks" in change:
        change = {"masks": pruning.masks(net, "GlobalMag", None, None, 1.5)}
    with pytest.raises(UserError, match="is no checkpoint of this training .it is of other masks"):
        train(net, **{"epochs": 4, "checkpoint": checkpoint} | change)
    assert len(train(network(), epochs=6, checkpoint=checkpoint)) == 7   # more epochs are the same training


def test_a_resumed_training_says_how_long_it_had_taken_before(checkpoint, monkeypatch):
    with pytest.raises(Stopped):
        train(network(), epochs=4, checkpoint=checkpoint, said=stop_after(3))
    content = torch.load(checkpoint, weights_only=True)
    assert 0 < content["seconds"] < 60
    torch.save(content | {"seconds": 1000.0}, checkpoint)
    with pytest.raises(Stopped):
        train(network(), epochs=5, checkpoint=checkpoint, said=stop_after(4))
    assert 1000 < torch.load(checkpoint, weights_only=True)["seconds"] < 1060
    assert train(network(), epochs=5, checkpoint=checkpoint).before > 1000 and train(network()).before == 0


def test_a_disk_that_is_full_costs_the_checkpoint_and_not_the_training(checkpoint, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    plain = train(network())
    monkeypatch.setattr(trainer.torch, "save", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert train(network(), checkpoint=checkpoint) == plain
    assert not list(checkpoint.parent.iterdir())


@pytest.mark.parametrize("precision, rounded", [("float32", False), ("bf16", True)])
def test_a_card_sums_in_one_order_and_rounds_float32_for_tests_of_bf16_alone(precision, rounded):
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    with trainer.conditions(images(), precision):
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == (True, rounded)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == before

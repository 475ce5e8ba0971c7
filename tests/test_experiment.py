"""A cell: its key, what its parts share, and that it always gives the same record, bit for bit."""

import json
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import UserError, collapse, data, experiment, methods, models, pruning
from lib.experiment import Cell, Record
from lib.methods import METHODS
from lib.scorers import SCORERS
from lib.scorers.common import scorer, weights
from lib.study import Study

ROOT = Path(__file__).parents[1]
CELL = Cell("digits", "cnn", "GlobalMag", 4, 1, 1, 0.01, width=0.2, train_images=256)
COLOUR = Cell("shapes10", "vgg16", "SNIP", 4, 1, 0, 0.01, width=0.05, train_images=300)


def images(cell):
    return data.load(cell.dataset).first(cell.train_images)


def lasting(record):
    """The record without what may differ from run to run: the times."""
    return replace(record, run={key: value for key, value in record.run.items() if "seconds" not in key}).to_json()


def values(model):
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


# --- keys and records

def test_the_key_depends_on_every_field_and_on_the_version(monkeypatch):
    others = {"dataset": "mnist", "model": "vgg16", "method": "SNIP", "compression": 4.5, "seed": 2, "epochs": 2,
              "learning_rate": 0.1, "batch_size": 64, "width": 0.3, "score_images": 64, "train_images": None}
    assert set(others) == set(asdict(CELL))
    keys = [CELL.key, *(replace(CELL, **{name: value}).key for name, value in others.items())]
    monkeypatch.setattr(experiment, "VERSION", experiment.VERSION + 1)
    assert len({*keys, CELL.key}) == len(others) + 2


def test_the_key_depends_on_nothing_else():
    assert Cell("digits", "cnn", "GlobalMag", 4, 1, 1, 1, width=1).key == \
        Cell("digits", "cnn", "GlobalMag", 4.0, 1, 1, 1.0, 128, 1.0, 128, None).key
    twin = subprocess.run([sys.executable, "-c", f"from lib.experiment import Cell; print({CELL!r}.key)"],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    assert twin.stdout.strip() == CELL.key and len(CELL.key) == 16


def test_a_record_goes_to_json_and_back():
    record = experiment.run(CELL)
    line = record.to_json()
    assert "\n" not in line and Record.from_json(line) == record and Record.from_json(line).to_json() == line
    assert Record.from_json(line).cell == CELL and json.loads(line)["cell"] == asdict(CELL)
    with pytest.raises(ValueError):
        replace(record, report={"compression": math.nan}).to_json()


def test_the_records_of_a_network_share_the_sizes_of_its_layers():
    one, other, wide = (experiment.run(replace(CELL, epochs=0, **change)) for change in ({}, {"seed": 2}, {"width": 0.3}))
    read = [Record.from_json(record.to_json()) for record in (one, other, wide)]
    assert read == [one, other, wide]
    assert read[0].report["sizes"] is read[1].report["sizes"] is not read[2].report["sizes"]
    assert all(a is b for a, b in zip(read[0].report["sizes"], read[1].report["kept"], strict=True))


@pytest.mark.parametrize("report", [
    {}, {"sizes": {}}, {"sizes": {"a": 1}}, {"kept": {"a": 1}}, {"sizes": {"a": 1}, "kept": {"b": 1}}])
def test_a_report_without_layers_is_read_as_it_is(report):
    cell = replace(CELL, epochs=0)
    record = Record(cell.key, experiment.VERSION, cell, report | {"compression": 4.0}, [], 10)
    assert Record.from_json(record.to_json()) == record


def test_a_record_holds_what_its_readers_need():
    record = experiment.run(CELL)
    whole = images(CELL)
    assert (record.key, record.version, record.cell) == (CELL.key, experiment.VERSION, CELL)
    assert record.test_images == len(whole.test_labels)
    assert [entry["epoch"] for entry in record.history] == [0, 1] and record.run["diverged"] is None
    assert record.run["device"] == "cpu" and record.run["precision"] == "float32" and record.run["threads"] == 1
    model = experiment.network(CELL, whole)
    masks = pruning.masks(model, "GlobalMag", None, None, 4)
    assert record.report == asdict(pruning.report(model, masks)) | {"digest": pruning.digest(masks)}


def test_no_epochs_make_masks_only():
    trained, only = experiment.run(CELL), experiment.run(replace(CELL, epochs=0))
    assert only.history == [] and only.report == trained.report and only.run["diverged"] is None


def test_the_seconds_of_a_resumed_cell_are_all_of_them(monkeypatch):
    train = experiment.trainer.train

    def resumed(*given, **rest):
        history = train(*given, **rest)
        history.before = 1000.0
        return history

    monkeypatch.setattr(experiment.trainer, "train", resumed)
    assert 1000 < experiment.run(CELL).run["seconds"] < 1100


def test_a_card_is_called_by_its_name_where_it_is_here(monkeypatch):
    assert [experiment.device_name(device) for device in ("cpu", "cpu:0", torch.device("cpu"))] == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a card, {device}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert experiment.device_name("cuda:1") == "a card, cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert experiment.device_name("cuda") == "cuda"


def test_a_diverged_cell_is_recorded_in_finite_json():
    record = experiment.run(replace(CELL, learning_rate=1e30, epochs=3))
    assert record.run["diverged"] == 1 and len(record.history) == 2
    assert Record.from_json(record.to_json()) == record


def test_digests_tell_masks_apart():
    one = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False])}
    other = {"a": one["a"].T.contiguous(), "b": one["b"]}
    assert pruning.digest(one) != pruning.digest(other)
    assert pruning.digest(one) == pruning.digest({name: mask.clone() for name, mask in one.items()})


@pytest.mark.parametrize("change", [
    {"dataset": "mnistt"}, {"model": "cnn2"}, {"method": "Snip"}, {"method": "LAMP@written"}, {"compression": 0.9},
    {"compression": math.nan}, {"epochs": -1}, {"batch_size": 0}, {"score_images": 0}, {"learning_rate": 0},
    {"learning_rate": math.nan}, {"compression": "4"}, {"compression": None}, {"epochs": 1.5}, {"seed": "1"},
    {"batch_size": math.inf}, {"train_images": 2.5}, {"method": "Mine"}, {"seed": True}, {"compression": True},
])
def test_an_impossible_cell_is_refused(change):
    with pytest.raises(UserError):
        replace(CELL, **change)


@pytest.mark.parametrize("change", [
    {"compression": 17}, {"compression": math.inf}, {"width": 0}, {"train_images": 0}, {"train_images": 10**6},
    {"dataset": "shapes10"},
    {"dataset": "shapes10", "model": "vgg16", "width": 0.05, "train_images": 129, "compression": 2},
    {"dataset": "shapes10", "model": "vgg16", "width": 0.05, "score_images": 1, "method": "SNIP", "compression": 2},
    {"dataset": "shapes10", "model": "vgg16", "width": 0.05, "score_images": 129, "method": "OBD", "compression": 2}])
def test_a_cell_that_its_network_or_data_cannot_meet_is_refused_when_run(change):
    with pytest.raises(UserError):
        experiment.run(replace(CELL, **change))


# --- what the cells of a seed share

def test_methods_of_a_seed_share_their_initial_weights_but_for_the_init():
    drawn, whole = defaultdict(list), images(CELL)
    for name in [*METHODS, *(method.name for method in methods.DENSE.values())]:
        cell = replace(CELL, method=name, compression=1)
        drawn[methods.get(name).init].append(values(experiment.network(cell, whole)))
        one = replace(cell, compression=8 if name in METHODS else 1, epochs=3)
        drawn[methods.get(name).init].append(values(experiment.network(one, whole)))
    assert all(torch.equal(first, other) for first, *rest in drawn.values() for other in rest)
    own, scaled, xavier = (drawn[init][0] for init in models.INITS)
    assert len(drawn) == 3 and not torch.equal(own, scaled) and not torch.equal(own, xavier)
    other_seed = experiment.network(replace(CELL, seed=2), whole)
    assert not torch.equal(values(other_seed), own)


def test_xavier_leaves_the_biases_that_the_own_init_drew():
    own, xavier = (experiment.network(replace(CELL, method=method), images(CELL)) for method in ("OBD", "SNIP@run"))
    assert torch.equal(own.conv1.bias, xavier.conv1.bias) and own.conv1.bias.any()


def test_weights_do_not_depend_on_the_global_generator():
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn.append(values(experiment.network(COLOUR, images(COLOUR))))
    assert torch.equal(*drawn)


def test_methods_of_a_seed_share_their_scoring_batch():
    whole, drawn = images(COLOUR), defaultdict(list)
    for name, method in METHODS.items():
        inputs, labels = experiment.scoring_batch(replace(COLOUR, method=name), whole)
        assert inputs.shape == (128, 3, 32, 32) and inputs.dtype == torch.float32
        drawn[method.mode == "calibrated" or method.reading == "run"].append((name, inputs, labels))
    (_, plain, labels), *rest = drawn[False]
    assert all(torch.equal(plain, inputs) and torch.equal(labels, other) for _, inputs, other in rest)
    released = [(inputs, other) for name, inputs, other in drawn[True] if not name.startswith("OBD")]
    assert len(released) == 13 and all(torch.equal(released[0][0], inputs) for inputs, _ in released)
    assert all(torch.equal(labels, other) for _, other in released)
    changed = (released[0][0] != plain).flatten(1).any(1)
    assert changed.float().mean() > 0.9  # augmented: 1 of 162 stays as it is
    other = experiment.scoring_batch(replace(COLOUR, seed=2), whole)[0]
    assert not torch.equal(other, plain)


def test_the_scoring_batch_holds_different_training_images():
    whole = images(COLOUR)
    inputs, labels = experiment.scoring_batch(COLOUR, whole)
    every = whole.normalise(whole.train_images).flatten(1)
    places = [int((every == image).all(1).nonzero()) for image in inputs.flatten(1)]
    assert len(set(places)) == 128 and places != sorted(places) and max(places) > 200
    assert torch.equal(whole.train_labels[places], labels)


def test_the_released_batch_is_augmented_only_where_training_is():
    whole = images(CELL)
    plain, released = (experiment.scoring_batch(replace(CELL, method=name), whole) for name in ("SNIP", "SNIP@run"))
    assert torch.equal(plain[0], released[0])


@pytest.mark.parametrize("method", ["OBD", "OBD@run"])
@pytest.mark.parametrize("count,expected", [(200, 200), (1000, 300)])
def test_obd_sees_the_training_images_in_order_as_they_are(method, count, expected):
    whole = images(COLOUR)
    inputs, labels = experiment.scoring_batch(replace(COLOUR, method=method, score_images=count), whole)
    assert torch.equal(inputs, whole.normalise(whole.train_images[:expected]))
    assert torch.equal(labels, whole.train_labels[:expected])


def test_generators_have_one_purpose_each():
    states = {bytes(experiment.generator(cell, purpose).get_state().numpy())
              for cell in (CELL, replace(CELL, seed=2), replace(CELL, dataset="mnist"), replace(CELL, width=0.3))
              for purpose in ("weights", "training", "scoring batch")}
    assert len(states) == 12
    same = replace(CELL, method="SNIP", compression=9, epochs=7, learning_rate=1, batch_size=5)
    assert torch.equal(experiment.generator(CELL, "x").get_state(), experiment.generator(same, "x").get_state())


def test_keys_and_seeds_are_those_of_the_committed_stores():
    """If one of these changes, every stored record is of another computation: experiment.VERSION must rise."""
    cell = Cell("mnist", "cnn", "SNIP", 4, 42, 5, 1e-3)
    assert cell.key == "bacf8bc9102c9ff1" and Study("critical", "mnist", "cnn", "SNIP", 42).key == "519c8a86930e57c1"
    assert experiment.generator(cell, "weights").initial_seed() == 4689311280722664397


def test_a_training_keeps_its_checkpoint_under_the_cells_key(monkeypatch, tmp_path):
    kept = []
    train = experiment.trainer.train
    monkeypatch.setattr(experiment.trainer, "train", lambda *given, checkpoint, **rest: kept.append(checkpoint) or train(
        *given, checkpoint=checkpoint, **rest))
    experiment.run(SMALL, checkpoints=tmp_path, precision="bf16")
    experiment.run(SMALL)
    assert kept == [tmp_path / f"{SMALL.key}.bf16.pt", None]


# --- trained once, shown twice

SMALL = Cell("shapes10", "resnet20", "GlobalMag", 2, 1, 1, 0.01, width=0.125, train_images=256)


def test_twins_are_the_methods_whose_two_readings_share_a_score_without_data():
    twins = {name: experiment.twin(replace(CELL, method=name)) for name in METHODS}
    assert {name: cell.method for name, cell in twins.items() if cell} == {
        "GlobalMag": "GlobalMag@run", "LayerMag": "LayerMag@run", "LAMP": "LAMP@run"}
    assert twins["LAMP"] == replace(CELL, method="LAMP@run")
    assert experiment.twin(replace(CELL, epochs=0)) is None
    assert experiment.twin(replace(CELL, method="Dense", compression=1)) is None
    overflows = replace(CELL, dataset="shapes10", model="resnet56", method="SynFlow@run", compression=8)
    assert experiment.twin(overflows) == replace(overflows, method="Dense", compression=1)
    assert experiment.twin(replace(overflows, epochs=0)) is experiment.twin(replace(overflows, method="SynFlow")) is None


@pytest.mark.parametrize("change, has", [
    ({}, True), ({"score": "lamp"}, False), ({"scope": "layer"}, False), ({"init": "xavier_normal"}, False),
    ({"selection": "exact"}, False), ({"mode": "eval"}, True)])
def test_twins_are_found_in_the_table(monkeypatch, change, has):
    monkeypatch.setitem(METHODS, "Mine", methods.Method("Mine", "magnitude"))
    assert experiment.twin(replace(CELL, method="Mine")) is None
    row = replace(methods.Method("Mine@run", "magnitude", mode="dropout", selection="quantile"), **change)
    monkeypatch.setitem(METHODS, "Mine@run", row)
    assert (experiment.twin(replace(CELL, method="Mine")) is not None) == has


def test_a_score_that_is_written_anew_gives_its_own_masks(monkeypatch):
    monkeypatch.setitem(SCORERS, "mine", None)
    monkeypatch.setitem(METHODS, "Mine", methods.Method("Mine", "mine"))
    digests = []
    for sign in (1, -1):
        monkeypatch.setitem(SCORERS, "mine", lambda model, inputs, targets, sign=sign: {
            name: sign * weight.detach().abs() for name, weight in weights(model).items()})
        digests.append(experiment.run(replace(CELL, method="Mine", epochs=0)).report["digest"])
    assert digests[0] != digests[1]
    assert digests[0] == experiment.run(replace(CELL, method="GlobalMag", epochs=0)).report["digest"]


def test_a_cell_runs_on_one_thread_and_hands_the_others_back():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert experiment.run(replace(CELL, epochs=0), device=torch.device("cpu")).run["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_score_that_looks_at_data_has_no_twin(monkeypatch):
    released = replace(METHODS["GlobalGrad"], name="GlobalGrad@run", selection="quantile")
    monkeypatch.setitem(METHODS, "GlobalGrad@run", released)
    assert experiment.twin(replace(CELL, method="GlobalGrad")) is None


def test_a_cell_with_its_twins_mask_shows_the_twins_training():
    known = experiment.run(experiment.twin(SMALL))
    own, masks = experiment.served(SMALL, known), experiment.run(replace(SMALL, epochs=0))
    assert (own.key, own.version, own.cell) == (SMALL.key, experiment.VERSION, SMALL)
    assert own.history == known.history and own.test_images == known.test_images and len(own.history) == 2
    assert own.report == masks.report
    assert own.run["trained_as"] == "GlobalMag@run" and "trained as GlobalMag@run" in own.summary()
    rest = {"seconds", "score_seconds", "trained_as"}
    assert {name: value for name, value in own.run.items() if name not in rest} == {
        name: value for name, value in known.run.items() if name not in rest}
    assert own.run["seconds"] == own.run["score_seconds"] != known.run["seconds"] and 0 < own.run["seconds"] < 600
    assert Record.from_json(own.to_json()) == own


def test_a_released_synflow_that_drops_nothing_shows_the_unpruned_training(monkeypatch):
    cell = replace(SMALL, method="SynFlow@run", compression=4)
    assert experiment.served(cell, experiment.run(experiment.twin(cell))) is None   # so small a network does not overflow
    monkeypatch.setitem(SCORERS, "synflow_run", scorer(data=False, finite=False)(lambda model, inputs, targets: {
        name: torch.full_like(weight, torch.nan) for name, weight in weights(model).items()}))
    own, trained = experiment.served(cell, experiment.run(experiment.twin(cell))), experiment.run(cell)
    assert own.report == trained.report and own.report["compression"] == 1 and own.history == trained.history
    assert own.run["trained_as"] == "Dense"


def test_a_twin_that_diverged_shows_that_too():
    known = experiment.run(replace(experiment.twin(SMALL), learning_rate=1e30, epochs=3))
    own = experiment.served(replace(SMALL, learning_rate=1e30, epochs=3), known)
    assert known.run["diverged"] == own.run["diverged"] == 1 and own.history == known.history


def test_other_masks_are_trained_on_their_own():
    cell = replace(CELL, compression=2)   # of 7988 kept weights 60 are others
    assert experiment.served(cell, experiment.run(experiment.twin(cell))) is None


@pytest.mark.parametrize("flipped, shown", [(1, True), (2, False)])
def test_the_two_masks_may_differ_in_less_than_a_thousandth_of_the_kept_weights(monkeypatch, flipped, shown):
    """Of 1984 kept weights, 1.98: one weight may differ, two may not."""
    def masks_of(cell, model, whole):
        masks = {name: mask.clone() for name, mask in plain(SMALL, model, whole).items()}
        first = next(iter(masks.values())).view(-1)
        if cell.method == "GlobalMag@run":
            first[:flipped] = ~first[:flipped]
        return masks

    known, plain = experiment.run(experiment.twin(SMALL)), experiment.masks_of
    assert pruning.kept_count(experiment.network(SMALL, images(SMALL)), 2) == 1984
    monkeypatch.setattr(experiment, "masks_of", masks_of)
    own = experiment.served(SMALL, known)
    assert (own is not None) == shown


# --- bit for bit

def test_records_do_not_depend_on_the_order_of_cells():
    """A score is kept from cell to cell: it must be the cell's own, whatever the cell before was."""
    base = replace(CELL, method="GlobalGrad@run", compression=2, epochs=0)
    others = [{"compression": 8}, {"seed": 2}, {"width": 0.15}, {"score_images": 64}, {"train_images": 200},
              {"dataset": "shapes10", "model": "vgg16", "width": 0.05},
              {"dataset": "shapes10", "model": "resnet20", "width": 0.1, "method": "GlobalMag@run"},
              {"epochs": 1}, *({"method": method} for method in ("Random", "Random@run", "GraSP@run", "SNIP"))]
    cells, fresh = [base, *(replace(base, **change) for change in others)], {}
    for cell in cells:
        experiment._kept_scores.clear()
        fresh[cell] = lasting(experiment.run(cell))
    torch.manual_seed(9)
    for cell in cells[1:]:
        assert [lasting(experiment.run(each)) for each in (base, cell, base)] == [fresh[base], fresh[cell], fresh[base]]
    digests = {json.loads(line)["report"]["digest"] for line in fresh.values()}
    assert len(digests) == len(cells) - 1  # to train changes no mask


def test_a_kept_score_is_used_for_every_compression(monkeypatch):
    counted, plain = [], pruning.score
    monkeypatch.setattr(pruning, "score", lambda *given: counted.append(given[1].name) or plain(*given))
    experiment._kept_scores.clear()
    for r in (2, 4, 8):
        experiment.run(replace(CELL, method="GraSP", compression=r, epochs=0))
    assert counted == ["GraSP"]


def test_a_kept_score_is_not_used_for_another_folders_images(tmp_path):
    cell, digests = replace(CELL, dataset="mnist", method="GlobalGrad", epochs=0, train_images=None), []
    for seed in (0, 1):
        draw, folder = np.random.default_rng(seed), tmp_path / str(seed)
        folder.mkdir()
        np.savez(folder / "mnist.npz", classes=np.array(list("0123456789")), **{
            f"{split}_{what}": values for split in ("train", "test") for what, values in
            (("images", draw.integers(256, size=(64, 28, 28), dtype=np.uint8)), ("labels", np.arange(64) % 10))})
        digests.append(experiment.run(cell, str(folder)).report["digest"])
    assert digests[0] != digests[1]


def test_a_fresh_process_gives_the_same_record():
    cells = [replace(CELL, method=method) for method in ("GlobalGrad@run", "Random@run", "SynFlow")]
    text = (f"import torch; torch.set_num_threads(1)\nfrom lib import experiment\nfrom lib.experiment import Cell\n"
            f"for cell in {cells!r}: print(experiment.run(cell).to_json())")
    lines = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [lasting(Record.from_json(line)) for line in lines.splitlines()] == \
        [lasting(experiment.run(cell)) for cell in cells]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.score != "random"])
def test_a_cells_masks_are_those_of_pruning_masks(method):
    """On its own network and batch, whatever way the cell took to them. (The CNN has no dropout to draw.)"""
    cell = replace(CELL, method=method, epochs=0)
    whole = images(cell)
    model = experiment.network(cell, whole)
    direct = pruning.masks(model, method, *experiment.scoring_batch(cell, whole), cell.compression)
    assert experiment.run(cell).report["digest"] == pruning.digest(direct)


def test_training_starts_from_the_networks_own_weights():
    """Epoch 0 of a dense cell is its network before training."""
    cell = replace(CELL, method="Dense", compression=1)
    whole = images(cell)
    model = experiment.network(cell, whole).eval()
    right = (model(whole.normalise(whole.test_images)).argmax(1) == whole.test_labels).sum()
    assert experiment.run(cell).history[0]["top1"] == right


@pytest.mark.parametrize("wrong", [{"method": "Dense", "compression": 4}, {"learning_rate": float("inf")},
                                   {"width": float("inf")}, {"compression": float("nan")}, {"width": 0}, {"width": -1},
                                   {"train_images": 0}, {"train_images": -5}, {"batch_size": 0}, {"score_images": 0},
                                   {"learning_rate": 0}, {"epochs": -1}])
def test_a_cell_that_means_nothing_is_refused(wrong):
    fields = dict(dataset="digits", model="cnn", method="Random", compression=2, seed=0, epochs=1, learning_rate=0.1)
    with pytest.raises(UserError, match="(?i)" + next(iter(wrong)).replace("_", " ").replace("method", "unpruned")):
        Cell(**fields | wrong)


def test_a_method_of_many_rounds_sees_the_scoring_batch_of_its_cell(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "IterSNIP", methods.Method("IterSNIP", "snip", rounds=2))
    cell = replace(CELL, method="IterSNIP", epochs=0)
    images = experiment.images_of(cell)
    model = experiment.network(cell, images)
    by_hand = pruning.masks(model, "IterSNIP", *experiment.scoring_batch(cell, images), cell.compression)
    assert experiment.run(cell).report["digest"] == pruning.digest(by_hand)
    kept = pruning.kept_count(model, cell.compression)
    batch = experiment.scoring_batch(cell, images)
    looked_at = collapse.masks_keeping(model, methods.get("IterSNIP"), None, kept, batch)
    assert pruning.digest(looked_at) == pruning.digest(by_hand)

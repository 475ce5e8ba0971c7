"""Critical compression, against looking at every count of kept weights."""

import itertools

import pytest
import torch

from lib import collapse, methods, models, pruning
from tests.nets import Residual, chain, perceptron


def looked_at_everywhere(whole, weights, layers):
    """The fewest kept weights such that these and any more of them are whole."""
    counts = range(weights, layers - 1, -1)
    return next((kept + 1 for kept in counts if not whole(kept)), layers)


@pytest.mark.parametrize("edge", [3, 4, 50, 777, 1000])
def test_the_edge_is_found_to_one_percent_where_collapse_is_monotone(edge):
    whole = lambda kept: kept >= edge
    found = collapse.critical(whole, 1000, 3)
    assert edge == looked_at_everywhere(whole, 1000, 3) <= found.kept <= max(edge + 1, 1.01 * edge)
    assert found.rho == 1000 / found.kept and found.whole_again == ()
    assert (found.collapsed is None) == (edge == 3)


@pytest.mark.parametrize("edge", [5, 8, 21, 64, 99])
def test_the_edge_of_few_weights_is_exact_and_the_next_one_has_collapsed(edge):
    found = collapse.critical(lambda kept: kept >= edge, 1000, 3)
    assert found.kept == edge and found.collapsed == 1000 / (edge - 1)


def test_the_first_collapse_that_is_known_is_within_a_percent():
    whole = lambda kept: kept >= 7777
    found = collapse.critical(whole, 100_000, 3)
    assert whole(round(100_000 / found.rho)) and not whole(round(100_000 / found.collapsed))
    assert found.rho < found.collapsed <= 1.01 * found.rho


def test_a_network_is_looked_at_four_times_per_doubling():
    looked = []
    collapse.critical(lambda kept: looked.append(kept) or True, 1_000_000, 1000)
    assert looked[0] == 1_000_000 and looked[-1] == 1000
    assert all(more / fewer <= 2 ** 0.25 + 1e-3 for more, fewer in itertools.pairwise(looked)) and len(looked) <= 41


def test_a_shortcut_leaves_a_path_past_an_empty_layer():
    model = Residual()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(model).items()}
    masks["conv2.weight"].zero_()
    assert collapse.whole(model, masks) == {"path": True, "layers": False}


def test_one_weight_in_each_layer_is_a_path_where_they_meet():
    model = perceptron()
    masks = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(model).items()}
    masks["0.weight"][2, 1] = masks["2.weight"][3, 2] = True
    assert collapse.whole(model, masks) == {"path": True, "layers": True}
    masks["2.weight"] = masks["2.weight"].roll(1, dims=1)
    assert collapse.whole(model, masks) == {"path": False, "layers": True}


def test_a_network_that_is_whole_again_further_on_is_told():
    found = collapse.critical(lambda kept: kept > 500 or 20 < kept < 60, 1000, 2)
    assert 500 < found.kept <= 506 and found.collapsed < 2.01
    assert found.whole_again and all(1000 / 60 < rho < 1000 / 20 for rho in found.whole_again)


def test_a_network_that_never_is_whole_has_no_compression():
    assert collapse.critical(lambda kept: False, 100, 2).kept == 100


@pytest.mark.parametrize("name", ["GlobalMag", "SynFlow"])
def test_masks_keep_the_count_that_is_asked_for(name):
    model, method = models.build("cnn", width=0.1), methods.get(name)
    scores = None if method.rounds > 1 else pruning.score(model, method, None, None, torch.Generator())
    for kept in (3, 100, 1234):
        masks = collapse.masks_keeping(model, method, scores, kept)
        assert sum(int(mask.sum()) for mask in masks.values()) == kept


def test_the_critical_compression_of_a_network_is_that_of_its_masks():
    torch.manual_seed(0)
    model, method = chain(), methods.get("GlobalMag")
    scores = pruning.score(model, method, None, None, torch.Generator())
    sizes = [weight.numel() for weight in pruning.prunable(model).values()]

    def whole(kept):
        return not pruning.report(model, collapse.masks_keeping(model, method, scores, kept)).collapsed

    found = collapse.critical(whole, sum(sizes), len(sizes), per_octave=64)
    assert found.kept == looked_at_everywhere(whole, sum(sizes), len(sizes))

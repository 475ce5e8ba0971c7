"""Masks: exact counts, ties, rounds, the released rule; their independence of layout and threads; and their audit."""

import copy
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lib import UserError, methods, models, paths, pruning
from lib.methods import DENSE, METHODS
from lib.scorers.common import weights
from tests.nets import Residual, chain, make, perceptron

NARROW = {"cnn": 0.2, "vgg16": 0.05, "resnet56": 0.125}
EXACT = [name for name, method in METHODS.items() if method.reading != "run"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@lru_cache
def narrow(name):
    """A narrow network at initialisation; the tests leave it as it is."""
    model = models.build(name, 10, NARROW[name])
    models.initialise(model, "own", seeded(1))
    return model


def batch(model, count=8):
    images = torch.randn(count, *model.input_shape, generator=seeded(2))
    return images, torch.arange(count) % 10


def masks(model, method, compression=4.0, seed=3):
    return pruning.masks(model, method, *batch(model), compression, seeded(seed))


def total(model):
    return sum(value.numel() for value in model.parameters())


def free(model):
    """F: all parameters that are neither a convolution's nor a linear layer's weight, and the classifier's."""
    chosen = [value.numel() for value in model.parameters() if value.dim() > 1]
    return total(model) - sum(chosen[:-1])


def largest(model):
    return total(model) / (free(model) + len(pruning.prunable(model)))


def count(found):
    return sum(int(mask.sum()) for mask in found.values())


def flat(found):
    return torch.cat([values.flatten() for values in found.values()])


def same(one, two):
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


# --- how many weights stay

@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("method", [name for name in EXACT if name != "SynFlow"])
def test_the_kept_count_is_exact(name, method):
    model, row = narrow(name), METHODS[method]
    scores = pruning.score(model, row, *batch(model), seeded())
    sizes = [weight.numel() for weight in pruning.prunable(model).values()]
    for r in (1, 1.37, 2, 4, 10, largest(model)):
        kept = round(total(model) / r) - free(model)
        found = pruning.select(model, row, scores, r, seeded())
        assert count(found) == kept == pruning.kept_count(model, r)
        assert {key: mask.shape for key, mask in found.items()} == \
            {key: weight.shape for key, weight in pruning.prunable(model).items()}
        if row.scope == "layer":
            assert [int(mask.sum()) for mask in found.values()] == pruning.layer_counts(sizes, kept)


@pytest.mark.parametrize("name", NARROW)
def test_synflow_keeps_the_exact_count(name):
    model = narrow(name)
    for r in (4, largest(model)) if name == "cnn" else (7,):
        assert count(masks(model, "SynFlow", r)) == round(total(model) / r) - free(model)


def test_half_a_weight_is_rounded_to_even():
    """431,080 / 16 = 26,942.5, of which 5,580 cannot be pruned."""
    assert pruning.kept_count(models.build("cnn"), 16) == 26_942 - 5_580 == 21_362


@pytest.mark.parametrize("name,classes,largest", [
    ("cnn", 10, "77.2"), ("vgg16", 10, "774.6"), ("vgg16", 100, "229.5"), ("resnet56", 10, "178.8"),
    ("resnet56", 100, "80.8"),
])
def test_an_error_names_the_largest_compression_and_that_one_works(name, classes, largest):
    with torch.device("meta"):
        model = models.build(name, classes)
    with pytest.raises(UserError, match=rf"largest is {largest}\.$"):
        pruning.kept_count(model, float(largest) + 0.2)
    assert pruning.kept_count(model, float(largest)) >= len(pruning.prunable(model))


@pytest.mark.parametrize("compression", [0.999, 0, -4, math.nan, math.inf, 1e9, "4", None])
@pytest.mark.parametrize("method", ["GlobalMag", "GlobalMag@run", "Random@run", "SynFlow"])
def test_an_impossible_compression_is_refused(compression, method):
    with pytest.raises(UserError, match="ompression"):
        masks(narrow("cnn"), method, compression)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.data())
def test_layers_share_by_largest_remainder(sizes, data):
    kept = data.draw(st.integers(0, sum(sizes)))
    counts = pruning.layer_counts(sizes, kept)
    quotas = [Fraction(kept * size, sum(sizes)) for size in sizes]
    given_more = [share - math.floor(quota) for share, quota in zip(counts, quotas)]
    assert sum(counts) == kept and set(given_more) <= {0, 1}
    rank = [(-(quota % 1), layer) for layer, quota in enumerate(quotas)]
    assert all(rank[a] < rank[b] for a, more in enumerate(given_more) if more
               for b, less in enumerate(given_more) if not less)


@given(st.lists(st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, math.inf]), min_size=1, max_size=14),
       st.data())
def test_top_is_a_stable_sort(values, data):
    kept = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    found = pruning.top(torch.tensor(values, dtype=torch.float64), kept)
    assert found.nonzero().flatten().tolist() == sorted(order[:kept])


def test_global_scope_breaks_ties_in_definition_order_and_layer_scope_in_each_layer():
    model = chain()
    equal = {name: torch.ones_like(weight) for name, weight in pruning.prunable(model).items()}
    kept = pruning.kept_count(model, 1.5)
    assert flat(pruning.select(model, METHODS["GlobalMag"], equal, 1.5, seeded()))[:kept].all()
    for mask in pruning.select(model, METHODS["LayerMag"], equal, 1.5, seeded()).values():
        assert mask.flatten()[:int(mask.sum())].all()


def test_the_highest_scores_stay():
    model = narrow("cnn")
    for method in ("GlobalMag", "GlobalGrad", "GraSP"):
        scores = flat(pruning.score(model, METHODS[method], *batch(model), seeded()))
        kept = flat(masks(model, method))
        assert scores[kept].min() > scores[~kept].max()


def test_dense_keeps_everything():
    model = narrow("cnn")
    assert all(flat(masks(model, method, 1)).all() for method in DENSE.values())
    for method in DENSE.values():
        with pytest.raises(UserError, match="is the unpruned network"):
            masks(model, method, 4)


# --- rounds

@pytest.mark.parametrize("fickle", [False, True])
def test_synflows_mask_only_shrinks_on_the_exponential_schedule(monkeypatch, fickle):
    """Also under a score that changes its mind in every round."""
    model, seen = narrow("cnn"), []
    published, generator = pruning.SCORERS["synflow"], seeded()

    def score(pruned, inputs, targets):
        seen.append(flat(pruning.prunable(pruned)) != 0)
        scores = published(pruned, inputs, targets)
        return {key: torch.rand(s.shape, generator=generator) for key, s in scores.items()} if fickle else scores

    monkeypatch.setitem(pruning.SCORERS, "synflow", score)
    seen.append(flat(masks(model, "SynFlow", 8)))
    n, kept = len(seen[0]), pruning.kept_count(model, 8)
    assert len(seen) == 101 and seen[0].all()
    assert [int(mask.sum()) for mask in seen] == [round(n * (kept / n) ** (k / 100)) for k in range(101)]
    assert not any((after & ~before).any() for before, after in pairwise(seen))


def test_synflow_as_run_keeps_all_of_resnet56():
    model = models.build("resnet56")
    models.initialise(model, "own", seeded())
    assert flat(pruning.masks(model, "SynFlow@run", None, None, 64)).all()


# --- the released rule

@pytest.mark.parametrize("name,r,weights_and_biases,rest", [
    ("cnn", 16, 426_070, 5_010), ("vgg16", 32, 14_977_344, 14_602), ("resnet56", 64, 848_304, 4_714)])
def test_the_released_density_counts_biases_as_prunable(name, r, weights_and_biases, rest):
    with torch.device("meta"):
        model = models.build(name)
    n = {"cnn": 431_080, "vgg16": 14_991_946, "resnet56": 853_018}[name]
    assert weights_and_biases + rest == n
    assert pruning.released_density(model, r) == pytest.approx((n / r - rest) / weights_and_biases, rel=1e-12)


def released(scores, density, scope):
    """The definition, in numpy."""
    arrays = {name: values.numpy() for name, values in scores.items()}
    every = np.concatenate([values.ravel() for values in arrays.values()])
    found = {}
    for name, s in arrays.items():
        t = np.quantile(every if scope == "global" else s, 1 - density)
        found[name] = torch.from_numpy(np.where((-t < s) & (s < t), 0, 1).astype(bool))
    return found


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sign", ["signed", "positive", "coarse"])
def test_the_released_mask_is_its_definition(scope, sign):
    model, row = narrow("cnn"), replace(METHODS["GraSP@run"], scope=scope)
    scores = {name: torch.randn(w.shape, generator=seeded()) * (1 + index)
              for index, (name, w) in enumerate(pruning.prunable(model).items())}
    change = {"signed": lambda s: s, "positive": torch.abs, "coarse": torch.round}[sign]
    scores = {name: change(s) for name, s in scores.items()}
    for r in (1, 1.5, 4, 12):
        found = pruning.select(model, row, scores, r, seeded())
        assert same(found, released(scores, pruning.released_density(model, r), scope))
    if sign == "signed" and scope == "global":  # both tails: twice what was asked for
        kept, s = flat(found), flat(scores)
        assert kept[s.argmin()] and kept[s.argmax()] and not kept[s.abs().argmin()]
        assert count(found) / len(s) == pytest.approx(2 * pruning.released_density(model, 12), rel=0.05)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_nan_drops_nothing_in_its_scope(scope):
    model = narrow("cnn")
    scores = {name: weight.detach().abs() for name, weight in pruning.prunable(model).items()}
    scores["conv1.weight"][0, 0, 0, 0] = math.nan
    found = pruning.select(model, replace(METHODS["GlobalMag@run"], scope=scope), scores, 8, seeded())
    assert found["conv1.weight"].all() and found["fc1.weight"].all() == (scope == "global")


def test_random_as_run_tosses_a_coin_for_each_weight():
    model = narrow("cnn")
    one, again, other = (masks(model, "Random@run", seed=seed) for seed in (3, 3, 4))
    n, density = len(flat(one)), pruning.released_density(model, 4)
    assert same(one, again) and not same(one, other) and count(one) != count(other)
    for found in (one, other):
        for mask in found.values():
            assert abs(int(mask.sum()) - mask.numel() * density) < 5 * math.sqrt(mask.numel() * density)
    agree = (flat(one) == flat(other)).double().mean()
    assert abs(agree - (density**2 + (1 - density)**2)) < 5 / math.sqrt(n)


def test_readings_without_data_agree_but_for_the_count():
    """|w| by rank and by quantile: the released mask of a positive score is a top set too."""
    model = narrow("vgg16")
    exact, quantile = masks(model, "GlobalMag"), masks(model, "GlobalMag@run")
    fewer, more = sorted([flat(exact), flat(quantile)], key=torch.sum)
    assert 0 < more.sum() - fewer.sum() < 0.01 * len(more) and not (fewer & ~more).any()


# --- what masks depend on, and what they leave alone

def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_masks_leave_the_model_and_the_global_generator_alone(method):
    model = copy.deepcopy(narrow("vgg16"))
    model.features[:20].eval()
    model.classifier[1].weight.grad = torch.ones_like(model.classifier[1].weight)
    model.classifier[5].bias.requires_grad_(False)
    before, modes = state(model), [module.training for module in model.modules()]
    inputs, targets = batch(model)
    images, rng = inputs.clone(), torch.get_rng_state()
    found = pruning.masks(model, method, inputs, targets, 4, seeded())
    assert all(mask.dtype == torch.bool for mask in found.values()) and list(found) == list(pruning.prunable(model))
    assert same(state(model), before) and modes == [module.training for module in model.modules()]
    assert torch.equal(torch.get_rng_state(), rng) and torch.equal(inputs, images)
    assert [name for name, value in model.named_parameters() if value.grad is not None] == ["classifier.1.weight"]
    assert (model.classifier[1].weight.grad == 1).all()
    assert [n for n, value in model.named_parameters() if not value.requires_grad] == ["classifier.5.bias"]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "SynFlow"])
def test_masks_come_from_weights_batch_and_generator_alone(method):
    """Not from the model's mode, its BatchNorm statistics where they say nothing, or the global generator."""
    model = narrow("vgg16")
    other = copy.deepcopy(model).eval()
    if METHODS[method].mode != "eval":
        nn.init.uniform_(other.features[1].running_mean)
    torch.manual_seed(1)
    one = masks(model, method)
    torch.manual_seed(2)
    assert same(one, masks(other, method))


def test_dropout_is_on_in_the_released_reading_alone():
    model = narrow("vgg16")
    for method, on in [("GlobalGrad", False), ("GlobalGrad@run", True), ("OBD", False), ("OBD@run", False)]:
        assert same(masks(model, method, seed=3), masks(model, method, seed=4)) != on


def test_dropout_of_whole_channels_is_off_too():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout2d(0.5), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
                          nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    model.input_shape = (1, 4, 4)
    for method, on in [("GlobalGrad", False), ("GlobalGrad@run", True)]:
        drawn = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            drawn.append(masks(model, method, 1.2, seed=seed))
        assert same(*drawn) != on


def test_batchnorm_takes_the_batchs_statistics_or_its_own():
    model = copy.deepcopy(narrow("vgg16"))
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.01, 4)
    for method, moved in [("GlobalGrad", False), ("GraSP", False), ("GlobalAct@run", False), ("OBD", False),
                          ("SynFlow@run", True)]:
        assert same(masks(model, method), masks(other, method)) != moved


# Wide enough that float32 moves weights under another layout, and the methods that compute in float64: not OBD where
# there is BatchNorm.
LAYOUTS = {
    "cnn": (0.2, EXACT),
    "vgg16": (0.1, ["GlobalGrad", "GraSP", "GlobalAct", "SNIP@written", "GlobalLAP", "LAMP"]),
    "resnet56": (0.25, ["GlobalGrad"]),
}


@lru_cache
def wider(name):
    model = models.build(name, 10, LAYOUTS[name][0])
    models.initialise(model, "own", seeded(1))
    return model, *batch(model, 16)


@lru_cache
def straight(name, method):
    model, images, targets = wider(name)
    return pruning.masks(model, method, images, targets, 4, seeded(3))


@pytest.mark.parametrize("how", ["channels last", "transposed"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_masks_do_not_depend_on_the_layout(name, how):
    model, images, targets = wider(name)
    if how == "transposed":
        images = images.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    for method in LAYOUTS[name][1]:
        assert same(pruning.masks(model, method, images, targets, 4, seeded(3)), straight(name, method)), method


@pytest.mark.parametrize("name,method", [("cnn", "OBD"), ("cnn", "GraSP"), ("vgg16", "GlobalGrad")])
def test_masks_do_not_depend_on_the_threads(name, method):
    model, images, targets = wider(name)
    one = straight(name, method)
    torch.set_num_threads(2)
    try:
        assert same(pruning.masks(model, method, images, targets, 4, seeded(3)), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("method", EXACT)
def test_masks_of_a_float32_model_are_those_of_its_float64_copy(method):
    model = narrow("cnn")
    assert same(masks(model, method), masks(copy.deepcopy(model).double(), method))


@pytest.mark.parametrize("method", METHODS)
def test_the_precision_and_mode_that_a_score_is_computed_in(method, monkeypatch):
    row, seen = METHODS[method], []

    def spy(model, inputs, targets, **options):
        seen.append((next(model.parameters()).dtype, model.training, {
            module.training for module in model.modules() if isinstance(module, nn.Dropout)}))
        return {name: torch.rand(weight.shape, dtype=torch.float64) for name, weight in weights(model).items()}

    monkeypatch.setitem(pruning.SCORERS, row.score, spy)
    masks(narrow("vgg16"), method)
    single = row.reading == "run" or row.base == "OBD"
    evaluated = row.base in ("OBD", "SynFlow")
    dropping = row.reading == "run" and not evaluated
    if row.rounds == 1:
        assert seen == [(torch.float32 if single else torch.float64, not evaluated, {dropping})]
    else:
        assert {dtype for dtype, _, _ in seen} == {torch.float64}  # its scorer evaluates by itself


# --- OBD's statistics

def test_calibration_is_the_cumulative_average_over_chunks_of_128():
    model = make("batchnorm")
    images = torch.randn(300, *model.input_shape, generator=seeded(), dtype=torch.float64)
    first, second = [], []
    for chunk in (images[:128], images[128:256], images[256:]):
        signal = model[0](chunk)
        first.append((signal.mean((0, 2, 3)), signal.var((0, 2, 3))))
        centred = signal - signal.mean((0, 2, 3), keepdim=True)
        scaled = centred / (signal.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        signal = model[3]((scaled * model[1].weight[:, None, None] + model[1].bias[:, None, None]).clamp(min=0))
        second.append((signal.mean((0, 2, 3)), signal.var((0, 2, 3))))
    pruning.calibrate(model.train(), images)
    for norm, seen in [(model[1], first), (model[4], second)]:
        means, variances = (torch.stack(values).mean(0) for values in zip(*seen))
        assert torch.allclose(norm.running_mean, means, rtol=1e-10) and torch.allclose(norm.running_var, variances)


@pytest.mark.parametrize("method", ["OBD", "OBD@run"])
def test_obd_scores_a_calibrated_copy(method, monkeypatch):
    model = narrow("vgg16")
    images, seen = batch(model, 260)[0], []
    expected = copy.deepcopy(model).train()
    for module in expected.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    pruning.calibrate(expected, images)
    assert expected.features[1].num_batches_tracked == 3 and expected.features[1].running_mean.any()

    def spy(scored, inputs, targets):
        seen.append(not scored.training and same(scored.state_dict(), expected.state_dict()))
        return {name: torch.rand(weight.shape) for name, weight in weights(scored).items()}

    monkeypatch.setitem(pruning.SCORERS, METHODS[method].score, spy)
    pruning.masks(model, method, images, torch.zeros(260, dtype=torch.int64), 4, seeded())
    assert seen == [True] and not model.features[1].running_mean.any()


# --- the audit

class Down(nn.Module):
    """A block with stride 2 and an odd number of new channels, as in the ResNets."""

    input_shape = (1, 5, 5)

    def __init__(self):
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()
        self.block, self.pool, self.linear = models.Block(2, 5, stride=2), nn.AdaptiveAvgPool2d(1), nn.Linear(5, 3)

    def forward(self, images):
        return self.linear(self.pool(self.block(self.relu(self.conv1(images)))).flatten(1))


class Paths:
    """The network as a graph: nodes (stage, channel, y, x) or (stage, unit); an edge carries a kept weight or None."""

    def __init__(self, masks):
        self.masks, self.edges = masks, []

    def join(self, source, target, weight=None):
        if weight is None or self.masks[weight[0]][weight[1:]]:
            self.edges.append((source, target, weight))

    def conv(self, name, before, after, size, stride=1, padding=1):
        out, channels, kernel, _ = self.masks[name].shape
        places = (size + 2 * padding - kernel) // stride + 1
        for o, c, y, x, i, j in np.ndindex(out, channels, places, places, kernel, kernel):
            row, column = y * stride + i - padding, x * stride + j - padding
            if 0 <= row < size and 0 <= column < size:
                self.join((before, c, row, column), (after, o, y, x), (name, o, c, i, j))

    def dense(self, name, inputs, after, out):
        """A linear layer; the classifier, which has no mask, is whole."""
        for o in range(out):
            for index, node in enumerate(inputs):
                self.join(node, (after, o), (name, o, index) if name in self.masks else None)

    def reach(self, start, backwards=False):
        ahead = {}
        for source, target, _ in self.edges:
            source, target = (target, source) if backwards else (source, target)
            ahead.setdefault(source, set()).add(target)
        seen, front = set(start), set(start)
        while front:
            front = {node for old in front for node in ahead.get(old, ())} - seen
            seen |= front
        return seen

    def on_path(self, inputs, outputs):
        seen, needed = self.reach(inputs), self.reach(outputs, backwards=True)
        return {weight for source, target, weight in self.edges if weight and source in seen and target in needed}


def grid(stage, channels, size):
    return [(stage, *place) for place in np.ndindex(channels, size, size)]


def perceptron_paths(g):
    g.dense("0.weight", inputs := [("in", unit) for unit in range(6)], "a", 5)
    g.dense("2.weight", [("a", unit) for unit in range(5)], "b", 4)
    g.dense("4.weight", [("b", unit) for unit in range(4)], "out", 3)
    return inputs


def chain_paths(g):
    g.conv("0.weight", "in", "a", 4, stride=2)
    g.conv("2.weight", "a", "b", 2)
    g.dense("5.weight", grid("b", 2, 2), "c", 4)
    g.dense("7.weight", [("c", unit) for unit in range(4)], "out", 3)
    return grid("in", 1, 4)


def residual_paths(g):
    g.conv("conv1.weight", "in", "a", 4)
    g.conv("conv2.weight", "a", "b", 4)
    for place in np.ndindex(2, 4, 4):
        g.join(("a", *place), ("b", *place))
        g.join(("b", *place), ("c", place[0], place[1] // 2, place[2] // 2))
    g.dense("linear.weight", grid("c", 2, 2), "out", 3)
    return grid("in", 1, 4)


def down_paths(g):
    g.conv("conv1.weight", "in", "a", 5)
    g.conv("block.conv1.weight", "a", "b", 5, stride=2)
    g.conv("block.conv2.weight", "b", "c", 3)
    for channel, y, x in np.ndindex(2, 3, 3):
        g.join(("a", channel, 2 * y, 2 * x), ("c", channel + 1, y, x))
    for place in np.ndindex(5, 3, 3):
        g.join(("c", *place), ("d", place[0]))
    g.dense("linear.weight", [("d", channel) for channel in range(5)], "out", 3)
    return grid("in", 1, 5)


GRAPHS = {"perceptron": (perceptron, perceptron_paths), "chain": (chain, chain_paths),
          "residual": (Residual, residual_paths), "down": (Down, down_paths)}


def random_masks(net, seed):
    """From nearly empty to nearly full, layer by layer; now and then a layer is empty."""
    generator = seeded(seed)
    shares = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9]
    pick = lambda: shares[int(torch.randint(len(shares), (), generator=generator))]
    return {name: torch.rand(weight.shape, generator=generator) < pick()
            for name, weight in pruning.prunable(net).items()}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_audit_is_a_search_of_the_graph(name):
    build, draw = GRAPHS[name]
    net, outcomes = build(), Counter()
    for seed in range(40):
        found = random_masks(net, seed)
        graph = Paths(found)
        expected = graph.on_path(draw(graph), [("out", unit) for unit in range(3)])
        audited = paths.on_path(net, found)
        assert expected == {(key, *index) for key, mask in audited.items() for index in mask.nonzero().tolist()}
        audit = pruning.report(net, found)
        reached = graph.reach([node for node, _, _ in graph.edges if node[0] == "in"])
        assert audit.effective_kept == len(expected)
        assert audit.collapsed == (not any(("out", unit) in reached for unit in range(3)))
        assert audit.effective_compression == total(net) / (free(net) + len(expected))
        outcomes[audit.collapsed, bool(audit.empty_layers)] += 1
    assert outcomes[False, False] > 2 and outcomes[True, True] > 2


def test_position_counts():
    """On one pixel only the centre of a padded 3x3 kernel ever sees a signal."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2))
    net.input_shape = (1, 1, 1)
    kept = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    assert pruning.report(net, {"0.weight": kept}).effective_kept == 1
    kept[0, 0, 1, 1] = False
    audit = pruning.report(net, {"0.weight": kept})
    assert audit.collapsed and audit.effective_kept == 0 and audit.empty_layers == []


def test_any_input_of_a_pooling_passes():
    """On two by two pixels every weight of a padded 3x3 kernel is some pixel's only way."""
    pools = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(3, ceil_mode=True), nn.MaxPool2d(2, padding=1)
    for pool, size in zip(pools, (1, 1, 1, 2)):
        net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(size**2, 2))
        net.input_shape = (1, 2, 2)
        assert pruning.report(net, {"0.weight": torch.ones(1, 1, 3, 3, dtype=torch.bool)}).effective_kept == 9


class Functional(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, images):
        return self.pool(images)


def test_any_input_passes_wherever_the_pooling_stands():
    """All masks are whole; through the largest input alone 116 of the 196 weights would have a way to the logits."""
    def audited(first, second):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), first, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
                            second, nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        net.input_shape = (1, 6, 6)
        return pruning.report(net, {name: torch.ones_like(weight, dtype=torch.bool)
                                    for name, weight in pruning.prunable(net).items()}).effective_kept

    shared, function = nn.MaxPool2d(2), Functional(lambda images: functional.max_pool2d(images, 2))
    for first, second in [(nn.MaxPool2d(2), nn.MaxPool2d(2)), (shared, shared), (function, function),
                          (shared, Functional(lambda images: functional.adaptive_max_pool2d(images, 1)))]:
        assert audited(first, second) == 196
    with pytest.raises(UserError, match="dilated"):
        audited(nn.MaxPool2d(2, dilation=2, stride=2), shared)


@pytest.mark.parametrize("pool, message", [
    (lambda images: images.flatten(2).max(-1).values, "follow max"), (lambda images: images.flatten(2).max(dim=2)[0], "max"),
    (lambda images: torch.max(images.flatten(2), 2)[0], "max"), (lambda images: images.amin((2, 3)), "amin"),
    (lambda images: images.flatten(2).topk(1).values[..., 0], "topk"),
    (lambda images: functional.max_pool2d(images, 6, return_indices=True)[0].flatten(1), "max_pool2d with indices")])
def test_a_function_that_chooses_one_signal_is_refused_in_the_audit(pool, message):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Functional(pool), nn.Linear(4, 4), nn.ReLU(),
                        nn.Linear(4, 2))
    net.input_shape = (1, 6, 6)
    with pytest.raises(UserError, match=f"does not .*{message}"):
        pruning.report(net, pruning.masks(net, "GlobalMag", None, None, 1.2))


def test_functions_that_hand_on_the_largest_signals_are_followed():
    def audited(pool):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Functional(pool), nn.Linear(4, 4), nn.ReLU(),
                            nn.Linear(4, 2))
        net.input_shape = (1, 6, 6)
        found = {name: torch.rand(weight.shape, generator=seeded()) < 0.4 for name, weight in pruning.prunable(net).items()}
        return pruning.report(net, found).effective_kept

    mean = audited(lambda images: images.mean((2, 3)))
    assert mean > 10 and audited(lambda images: images.amax((2, 3))) == mean
    assert audited(lambda images: torch.max(images, images).mean((2, 3))) == mean


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4),
                                   nn.BatchNorm2d(4), nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1), nn.Dropout2d(0.5),
                                   nn.RMSNorm(3), nn.LayerNorm(3)])
def test_a_whole_network_is_whole_whatever_stands_between_its_layers(layer):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), layer, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net.input_shape = (1, 5, 5)
    audit = pruning.report(net, {"0.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)})
    assert audit.effective_kept == 36 and not audit.collapsed


def test_a_norm_that_stands_in_two_places_is_no_obstacle():
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.Flatten(), nn.Linear(4, 2))
    net.input_shape = (1, 5, 5)
    whole = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(net).items()}
    assert pruning.report(net, whole).effective_kept == 36 + 144


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid(), nn.Softplus(), nn.LogSigmoid(), nn.Hardsigmoid()])
def test_an_activation_makes_no_signal(activation):
    net = nn.Sequential(nn.Linear(3, 2), activation, nn.Linear(2, 2), activation, nn.Linear(2, 2))
    net.input_shape = (3,)
    masks = {"0.weight": torch.tensor([[True, False, False], [False] * 3]), "2.weight": torch.ones(2, 2, dtype=torch.bool)}
    assert pruning.report(net, masks).effective_kept == 3
    assert pruning.report(net, masks | {"0.weight": torch.zeros(2, 3, dtype=torch.bool)}).collapsed


def test_parameters_of_a_module_of_unknown_kind_are_refused_in_the_audit():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(5))

        def forward(self, signal):
            return self.factor * signal

    net = perceptron().insert(1, Scale())
    masks = pruning.masks(net, "GlobalMag", None, None, 1.5)
    with pytest.raises(UserError, match="does not know 1, a Scale with parameters"):
        pruning.report(net, masks)


def test_layers_that_share_a_weight_are_refused():
    net = perceptron()
    net.append(nn.Linear(4, 3)).append(nn.Linear(3, 4))
    net[6].weight = net[4].weight = nn.Parameter(torch.ones(4, 4))
    with pytest.raises(UserError, match="4 and 6 share one weight"):
        pruning.masks(net, "GlobalMag", None, None, 1.5)


class Idle(Residual):
    """A network with a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Conv2d(2, 2, 3)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if pruning.needs_data(method.score)])
def test_a_layer_that_is_never_called_is_named_where_data_would_score_it(name):
    with pytest.raises(UserError, match="never calls extra"):
        pruning.masks(Idle(), name, torch.randn(4, 1, 4, 4), torch.arange(4) % 3, 1.2)


def test_no_path_leads_through_a_layer_that_is_never_called():
    net = Idle()
    audit = pruning.report(net, found := pruning.masks(net, "GlobalMag", None, None, 1.2))
    assert not paths.on_path(net, found)["extra.weight"].any() and audit.kept["extra.weight"] and audit.effective_kept


def mine(model, inputs, targets):
    """A score of a user who forgot `@scorer`."""
    return {name: weight.detach().abs() for name, weight in weights(model).items()}


@pytest.mark.parametrize("spoil, message", [
    (lambda scores: scores["0.weight"].fill_(float("nan")), "not finite"),
    (lambda scores: scores["2.weight"].view(-1)[:1].fill_(float("inf")), "not finite"),
    (lambda scores: scores.pop("2.weight"), "score of 2.weight is NoneType"),
    (lambda scores: scores.update({"0.weight": torch.ones(5)}), r"torch.float32 of shape \(5,\): it must be .* \(5, 6\)"),
    (lambda scores: scores.update({"0.weight": torch.ones(5, 6).bfloat16()}), "bfloat16"),
    (lambda scores: scores.update({"0.weight": np.ones((5, 6))}), "spoilt score is no dict of tensors"),
])
def test_a_score_that_no_mask_can_be_made_of_is_refused(monkeypatch, spoil, message):
    def spoilt(model, inputs, targets):
        scores = mine(model, inputs, targets)
        spoil(scores)
        return scores

    monkeypatch.setitem(pruning.SCORERS, "mine", spoilt)    # of which the table of methods asks only whether it is there
    method, batch = methods.Method("Mine", "mine"), (torch.randn(4, 6), torch.arange(4) % 3)
    with pytest.raises(UserError, match=message):
        pruning.masks(perceptron(), method, *batch, 1.5)
    monkeypatch.setitem(pruning.SCORERS, "mine", mine)
    net = perceptron()
    assert sum(map(int, (mask.sum() for mask in pruning.masks(net, method, *batch, 1.5).values()))) == (
        pruning.kept_count(net, 1.5))


@pytest.mark.parametrize("returned", [None, [torch.ones(5, 6)]])
def test_a_score_that_is_no_dict_is_refused(monkeypatch, returned):
    monkeypatch.setitem(pruning.SCORERS, "mine", lambda model, inputs, targets: returned)
    with pytest.raises(UserError, match="no dict of tensors"):
        pruning.masks(perceptron(), methods.Method("Mine", "mine"), torch.randn(4, 6), torch.arange(4) % 3, 1.5)


def test_a_score_may_carry_a_gradient(monkeypatch):
    monkeypatch.setitem(pruning.SCORERS, "mine", lambda model, inputs, targets: {
        name: weight * weight for name, weight in weights(model).items()})
    for selection in ("exact", "quantile"):
        found = pruning.masks(net := perceptron(), methods.Method("Mine", "mine", selection=selection), torch.randn(4, 6),
                              torch.arange(4) % 3, 1.5)
        assert not any(mask.all() for mask in found.values()) and not net[0].weight.grad_fn


def drawn(model, inputs, targets):
    return {name: torch.rand_like(weight) for name, weight in weights(model).items()}


def handed(model, inputs, targets, *, generator):
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights(model).items()}


@pytest.mark.parametrize("score", [drawn, handed])
@pytest.mark.parametrize("mode", ["train", "dropout"])
def test_a_score_of_ones_own_that_draws_does_so_from_the_generator(monkeypatch, score, mode):
    monkeypatch.setitem(pruning.SCORERS, "mine", score)
    net, method = perceptron(), methods.Method("Mine", "mine", mode=mode)
    made = lambda seed: pruning.masks(net, method, torch.randn(4, 6), torch.arange(4) % 3, 1.5, seeded(seed))
    before = torch.get_rng_state()
    first, other, again = made(1), made(2), made(1)
    assert same(first, again) and not same(first, other)
    net_only = pruning.masks(net, "GlobalMag", None, None, 1.5)
    torch.set_rng_state(before)
    pruning.masks(net, method, torch.ones(4, 6), torch.arange(4) % 3, 1.5)
    assert torch.equal(torch.get_rng_state(), before) and not same(first, net_only)


def test_rounds_of_a_score_with_data_score_the_pruned_network_again():
    net, batch = chain(), (torch.randn(8, 1, 4, 4), torch.arange(8) % 3)
    twice, kept = methods.Method("IterSNIP", "snip", rounds=2), pruning.kept_count(net, 2)
    total = sum(weight.numel() for weight in pruning.prunable(net).values())
    pruned = copy.deepcopy(net).double()
    for stay in (round(total * (kept / total) ** 0.5), kept):
        scores = pruning.SCORERS["snip"](pruned, batch[0].double(), batch[1])
        flat = torch.cat([scores[name].flatten() for name in pruning.prunable(pruned)])
        by_hand = pruning.top(flat, stay)
        with torch.no_grad():
            for weight, part in zip(pruning.prunable(pruned).values(),
                                    by_hand.split([w.numel() for w in pruning.prunable(pruned).values()])):
                weight *= part.view(weight.shape)
    found = pruning.masks(net, twice, *batch, 2)
    assert torch.equal(torch.cat([mask.flatten() for mask in found.values()]), by_hand)
    assert not same(found, pruning.masks(net, methods.Method("OnceSNIP", "snip"), *batch, 2))


def test_rounds_of_a_calibrated_score_are_calibrated_to_what_is_left(monkeypatch):
    net, seen = Residual(), []
    images = torch.randn(12, 1, 4, 4, generator=seeded())

    def score(pruned, inputs, targets):
        seen.append((copy.deepcopy(pruned.bn2.running_mean), copy.deepcopy(pruned)))
        return pruning.SCORERS["magnitude"](pruned, None, None)

    monkeypatch.setitem(pruning.SCORERS, "mine", score)
    pruning.masks(net, methods.Method("Mine", "mine", rounds=3, mode="calibrated"), images, torch.arange(12) % 3, 2)
    assert len(seen) == 3 and not torch.equal(seen[0][0], seen[1][0])
    for mean, pruned in seen:
        pruning.set_mode(pruned, "calibrated", images)
        assert torch.equal(mean, pruned.bn2.running_mean)


def test_a_partial_function_is_a_score_of_ones_own(monkeypatch):
    monkeypatch.setitem(pruning.SCORERS, "warm", partial(pruning.SCORERS["grasp"], temperature=1.0))
    net, data = narrow("cnn"), batch(narrow("cnn"))
    found = pruning.masks(net, methods.Method("Warm", "warm"), *data, 4)
    kept = pruning.score(net, methods.get("GraSP"), *data, seeded())
    assert sum(int(mask.sum()) for mask in found.values()) == pruning.kept_count(net, 4) and found.keys() == kept.keys()
    assert not all(torch.equal(mask, other) for mask, other in zip(found.values(), masks(net, "GraSP").values()))


def test_scores_of_many_rounds_are_checked_too(monkeypatch):
    monkeypatch.setitem(pruning.SCORERS, "mine", lambda model, inputs, targets: {
        name: torch.ones(3) for name in weights(model)})
    with pytest.raises(UserError, match="mine score of 0.weight is torch.float32 of shape"):
        pruning.masks(perceptron(), methods.Method("Mine", "mine", rounds=2), torch.randn(4, 6), torch.arange(4) % 3, 1.5)


def test_masks_that_were_applied_before_hold_no_longer():
    net, batch = perceptron(), torch.randn(16, 6)
    start = copy.deepcopy(net.state_dict())
    ends = []
    for reused in (net, perceptron()):
        for name in ("LayerMag", "GlobalMag")[reused is not net:]:
            reused.load_state_dict(start)
            pruning.apply(reused, found := pruning.masks(reused, name, None, None, 2))
        optimizer = torch.optim.SGD(reused.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            reused(batch).square().sum().backward()
            optimizer.step()
        ends.append(reused.state_dict())
        assert all((reused.get_parameter(each)[~mask] == 0).all() for each, mask in found.items())
    assert all(torch.equal(one, other) for one, other in zip(ends[0].values(), ends[1].values()))
    pruning.apply(net, {name: torch.ones_like(mask) for name, mask in found.items()})
    net(batch).sum().backward()
    assert not any(weight._backward_hooks for weight in net.parameters())


class Odd(Residual):
    """A network of which the search of paths sees nothing, or too little, by arithmetic of its own."""

    def __init__(self, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, images):
        return self.after(super().forward(self.before(images)))


@pytest.mark.parametrize("arithmetic", [
    {"before": lambda images: (images - 127.5) / 58}, {"after": lambda logits: -logits},
    {"before": lambda images: -images}, {"before": lambda images: torch.relu(-images) - images}])
def test_a_network_that_the_audit_does_not_follow_is_refused(arithmetic):
    net = Odd(**arithmetic)
    with pytest.raises(UserError, match="does not follow"):
        pruning.report(net, pruning.masks(net, "GlobalMag", None, None, 1.2))


@pytest.mark.parametrize("after", [
    torch.nn.functional.log_softmax, torch.softmax, torch.Tensor.softmax, torch.sigmoid, torch.nn.functional.softplus,
    torch.nn.functional.logsigmoid, lambda logits, dim=1: torch.nn.functional.layer_norm(logits, (3,))])
def test_functions_that_hand_on_each_signal_are_followed_like_modules(after):
    found = pruning.masks(Residual(), "GlobalMag", None, None, 1.5)
    ends = {"dim": 1} if "softmax" in after.__name__ else {}
    assert pruning.report(Odd(after=lambda logits: after(logits, **ends)), found) == pruning.report(
        Odd(after=lambda logits: logits), found)
    empty = found | {"conv1.weight": torch.zeros_like(found["conv1.weight"])}
    assert pruning.report(Odd(after=lambda logits: after(logits, **ends)), empty).collapsed


def whole(net):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(net).items()}


def test_a_weight_on_which_nothing_depends_is_on_no_path_and_no_reason_to_refuse():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3),
                        nn.ReLU(), nn.Linear(3, 2))
    net.input_shape = (1, 4, 4)
    nn.init.uniform_(net[1].running_mean, -1, 0)   # so that the border lies above 0 by itself
    nn.init.uniform_(net[1].bias)
    assert pruning.report(net, whole(net)).effective_kept == 2 + 3 * 2 * 16   # the border of 20 of 36 sees padding alone
    with torch.no_grad():   # and whatever the network's own values are
        assert pruning.report(net.requires_grad_(False), whole(net)).effective_kept == 98
    silent = Odd(after=lambda logits: logits * 0)
    assert pruning.report(silent, whole(silent)).collapsed


def test_a_signal_that_some_weights_alone_do_not_get_is_refused():
    net = nn.Sequential(Functional(lambda images: torch.cat([images, -images], 1)), nn.Conv2d(2, 2, 3), nn.ReLU(),
                        nn.Flatten(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
    net.input_shape = (1, 4, 4)
    with pytest.raises(UserError, match="no path through all of 1.weight"):
        pruning.report(net, whole(net))


def test_nothing_to_prune_is_nothing_to_report():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net.input_shape = (1, 2, 2)
    with pytest.raises(UserError, match="nothing to prune"):
        pruning.report(net, {})


@pytest.mark.parametrize("method", ["GlobalGrad", "GraSP", "SynFlow", "OBD", "LAMP"])
def test_masks_and_their_report_are_the_same_in_inference_mode(method):
    net, data = narrow("cnn"), batch(narrow("cnn"))
    expected = masks(net, method)
    with torch.inference_mode():
        found = pruning.masks(net, METHODS[method], *data, 4, seeded())
        assert same(found, expected) and not pruning.report(net, found).collapsed


@pytest.mark.parametrize("change, message", [
    (lambda found: found.pop("0.weight"), "there is none for 0.weight"),
    (lambda found: found.update(odd=found["0.weight"]), "odd is no prunable weight"),
    (lambda found: found.update({"0.weight": found["0.weight"][:1]}), "it should be")])
def test_a_mask_too_few_too_many_or_of_another_shape_is_named(change, message):
    change(found := whole(net := chain()))
    with pytest.raises(UserError, match=message):
        pruning.apply(net, found)


def test_random_scores_have_one_round():
    with pytest.raises(UserError, match="cannot have 2 rounds"):
        methods.Method("Mine", "random", rounds=2)


def test_an_empty_layer_collapses_the_network_unless_a_shortcut_passes_it():
    net = Residual()
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(net).items()}
    for name, collapsed, effective in [("conv2.weight", False, 18), ("conv1.weight", True, 0)]:
        audit = pruning.report(net, full | {name: torch.zeros_like(full[name])})
        assert (audit.empty_layers, audit.collapsed, audit.effective_kept) == ([name], collapsed, effective)


def test_a_network_may_collapse_without_an_empty_layer():
    net = perceptron()
    found = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(net).items()}
    found["0.weight"][0] = found["2.weight"][:, 1] = True
    audit = pruning.report(net, found)
    assert audit.collapsed and audit.empty_layers == [] and sum(audit.kept.values()) == 10
    assert audit.effective_compression == total(net) / free(net)


def test_the_report_counts_masks_and_the_released_count_values():
    model = models.build("resnet20", width=0.25)
    found = random_masks(model, 5)
    kept = {name: int(mask.sum()) for name, mask in found.items()}
    with torch.no_grad():
        model.conv1.weight.zero_()  # values that happen to be 0 are kept weights
    audit = pruning.report(model, found)
    assert audit.kept == kept and audit.parameters == total(model)
    assert audit.sizes == {name: mask.numel() for name, mask in found.items()}
    assert audit.empty_layers == [name for name in kept if kept[name] == 0] != []
    assert audit.compression == total(model) / (free(model) + sum(kept.values()))
    biases = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))  # 0 at initialisation
    values = free(model) - biases + sum(kept.values()) - kept["conv1.weight"]
    assert audit.compression_released == total(model) / values


def test_a_network_of_which_nothing_is_left_has_a_report():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Conv2d(2, 3, 2, bias=False), nn.Flatten())
    net.input_shape = (1, 4, 4)
    nothing = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(net).items()}
    found = pruning.report(net, nothing)
    assert found.collapsed and found.compression == found.effective_compression == found.parameters == 42


def test_resnet110_does_not_overflow():
    model = models.build("resnet110")
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(model).items()}
    before = state(model)
    audit = pruning.report(model, full)
    assert audit.effective_kept == count(full) and not audit.collapsed and audit.effective_compression == 1
    assert same(state(model), before)


# --- pruned weights stay 0

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_pruned_weights_stay_zero_after_every_step_and_the_others_move(optimiser):
    model = copy.deepcopy(narrow("cnn"))
    found, (inputs, targets) = masks(model, "GlobalMag"), batch(model)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    pruning.apply(model, found)
    chosen = pruning.prunable(model)
    assert all(torch.equal(chosen[name], start[name] * mask) for name, mask in found.items())
    optimizer = OPTIMISERS[optimiser](model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        assert all(not chosen[name][~mask].any() for name, mask in found.items())
    assert all(not torch.equal(value, start[name] * found.get(name, 1)) for name, value in model.named_parameters())


def test_masks_that_do_not_fit_are_refused():
    model = narrow("cnn")
    good = masks(model, "GlobalMag")
    for bad in [{}, good | {"fc2.weight": torch.ones(10, 100, dtype=torch.bool)},
                good | {"conv1.weight": good["conv1.weight"][:1]},
                {name: mask for name, mask in good.items() if name != "conv2.weight"}]:
        for act in (pruning.apply, pruning.report):
            with pytest.raises(UserError, match="do not fit"):
                act(copy.deepcopy(model), bad)


@pytest.mark.parametrize("method", ["GlobalGrad", "GraSP", "SNIP@run", "GlobalAct", "OBD", "OBD@run"])
@pytest.mark.parametrize("name", ["cnn", "vgg16"])
def test_an_unfit_scoring_batch_is_refused(method, name):
    model = narrow(name)
    images, targets = batch(model)
    for inputs, labels in [(None, None), (images[:0], targets[:0]), (images, targets[1:]), (images, targets + 3),
                           (images, targets.float()), (images, targets[:, None]), (images[..., 1:], targets)]:
        with pytest.raises(UserError):
            pruning.masks(model, method, inputs, labels, 4)


@pytest.mark.parametrize("values", [0.5, 1, torch.nan])
def test_masks_that_are_not_bool_are_refused(values):
    model = copy.deepcopy(narrow("cnn"))
    numbers = {name: torch.full_like(weight, values) for name, weight in pruning.prunable(model).items()}
    before = state(model)
    for act in (pruning.apply, pruning.report):
        with pytest.raises(UserError, match="conv1.weight is torch.float32, it should be bool"):
            act(model, numbers)
    assert same(state(model), before)


def test_a_network_without_layers_is_refused():
    for act in (pruning.prunable, lambda model: pruning.masks(model, "GlobalMag", None, None, 2)):
        with pytest.raises(UserError, match="no Conv2d and no Linear"):
            act(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()))


def test_a_network_that_does_not_say_what_it_takes_is_refused_where_that_is_asked():
    model = chain()
    found = masks(model, "GlobalMag", 1.5)
    del model.input_shape
    for act in (lambda: pruning.report(model, found), lambda: pruning.masks(model, "SynFlow", None, None, 1.5)):
        with pytest.raises(UserError, match="Sequential.input_shape"):
            act()


def test_frozen_weights_and_no_grad_around_do_not_matter():
    model, frozen = narrow("cnn"), copy.deepcopy(narrow("cnn")).requires_grad_(False)
    for method in ("GraSP", "OBD@run", "SynFlow", "GlobalAct"):
        found = masks(model, method)
        with torch.no_grad():
            assert same(masks(frozen, method), found)
            assert pruning.report(frozen, found) == pruning.report(model, found)
    pruning.apply(frozen, found)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    frozen.requires_grad_()
    frozen(batch(model)[0]).square().sum().backward()
    for name, weight in pruning.prunable(frozen).items():
        assert not weight[~found[name]].any() and not weight.grad[~found[name]].any() and weight.grad.any()


def test_a_classifier_alone_has_nothing_to_prune():
    with pytest.raises(UserError, match="nothing to prune"):
        pruning.masks(nn.Sequential(nn.Linear(3, 3)), "GlobalMag", None, None, 1)


def test_a_method_may_be_a_row_of_ones_own():
    model = narrow("cnn")
    row = methods.Method("Mine", "magnitude", "layer")
    assert same(masks(model, row), masks(model, "LayerMag"))
    with pytest.raises(UserError, match="Unknown method"):
        masks(model, "Mine")


@pytest.mark.parametrize("wrong", [
    {"score": "magnitud"}, {"scope": "Layer"}, {"init": "xavier"}, {"mode": "evaluate"}, {"selection": "quantil"},
    {"rounds": 0}, {"rounds": 3, "scope": "layer"}, {"rounds": 3, "selection": "quantile"},
    {"rounds": 3, "score": "random"}, {"rounds": 2.5}, {"selection": "bernoulli", "score": "magnitude"},
    {"selection": "bernoulli", "score": "random", "scope": "layer"}])
def test_a_row_that_means_nothing_is_refused(wrong):
    with pytest.raises(UserError, match=f"Mine.*{next(iter(wrong.values()))}"):
        methods.Method(**{"name": "Mine", "score": "magnitude"} | wrong)


@pytest.mark.parametrize("name", ["Mine@ours", "Mine@", "@run", "Mine run", ""])
def test_a_name_that_tables_do_not_know_is_refused(name):
    with pytest.raises(UserError, match="cannot be named"):
        methods.Method(name, "magnitude")
    assert methods.Method("Mine-2.1@written", "magnitude").reading == "written"

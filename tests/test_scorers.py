"""Every score against its definition: brute force, autograd's explicit Hessian, invariants."""

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from lib import UserError, models
from lib.scorers import SCORERS, obd
from lib.scorers.common import scorer, weights
from lib.scorers.obd import diagonal
from tests.nets import NETS, batch, flat, hessian, loss_of, make

every_net = pytest.mark.parametrize("name", NETS)


def scored(score, net, **options):
    return SCORERS[score](net, *batch(net), **options)


# --- what holds for every scorer

@pytest.mark.parametrize("score", SCORERS)
@pytest.mark.parametrize("training", [True, False])
def test_every_conv_and_linear_gets_a_score_and_the_model_stays_untouched(score, training):
    net = make("residual").train(training)
    net.linear.weight.grad = torch.ones_like(net.linear.weight)
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    scores = scored(score, net, **({"generator": torch.Generator()} if score == "random" else {}))
    assert list(scores) == ["conv1.weight", "conv2.weight", "linear.weight"]
    assert all(scores[name].shape == weight.shape and not scores[name].requires_grad
               for name, weight in weights(net).items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert modes == [module.training for module in net.modules()] and (net.linear.weight.grad == 1).all()
    assert all(p.requires_grad for p in net.parameters()) and net.conv1.weight.grad is None


@pytest.mark.parametrize("score", ["gradient", "activation", "obd", "snip", "grasp", "snip_written", "grasp_run"])
def test_an_unfit_batch_is_refused(score):
    net = make("chain")
    images, targets = batch(net)
    for inputs, labels in [(images[:0], targets[:0]), (images, targets[:3]), (images, targets + 3), (None, None),
                           (images[:, :, :3], targets), (images, targets - 5), (images, targets.float()),
                           (images, targets.int()), (images, targets[:, None]), (images.numpy(), targets.numpy()),
                           (images.to(torch.uint8), targets)]:
        with pytest.raises(UserError):
            SCORERS[score](net, inputs, labels)


@pytest.mark.parametrize("score", sorted(set(SCORERS) - {"random", "synflow_run"}))
def test_scores_that_are_not_finite_are_refused(score):
    net = make("chain")
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        scored(score, net)


@pytest.mark.parametrize("values, refused", [([1e308] * 4, False), ([1, 2, 3, float("nan")], True),
                                             ([float("inf"), -float("inf"), 0, 0], True)])
def test_finite_scores_whose_sum_is_not_are_sound(values, refused):
    net = torch.nn.Linear(2, 2, bias=False).double()
    given = scorer()(lambda model, inputs, targets: {"weight": torch.tensor(values, dtype=torch.float64).view(2, 2)})
    with pytest.raises(UserError, match="not finite") if refused else nullcontext():
        given(net, torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


# --- baselines

def test_random_comes_from_its_generator_alone():
    net = make("chain")
    one, two = (scored("random", net, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = scored("random", net, generator=torch.Generator().manual_seed(4))
    assert torch.equal(one["0.weight"], two["0.weight"]) and not torch.equal(one["0.weight"], other["0.weight"])


@every_net
def test_magnitude_is_the_absolute_weight(name):
    net = make(name)
    assert all(torch.equal(score, weights(net)[key].abs()) for key, score in scored("magnitude", net).items())


@every_net
def test_gradient_and_snip_are_the_derivative_with_respect_to_a_mask(name):
    net = make(name)
    names = list(weights(net))
    loss, start = loss_of(net, *batch(net), names)
    by_mask = torch.func.grad(lambda mask: loss(mask * start))(torch.ones_like(start)).abs()
    assert torch.allclose(flat(scored("gradient", net), names), by_mask, rtol=1e-9)
    assert torch.allclose(flat(scored("snip", net), names), by_mask, rtol=1e-9)


@every_net
def test_snip_as_written_is_the_absolute_gradient(name):
    net = make(name)
    loss, start = loss_of(net, *batch(net), list(weights(net)))
    assert torch.allclose(flat(scored("snip_written", net), weights(net)), torch.func.grad(loss)(start).abs())


def test_activation_is_the_first_relu_after_the_layer():
    net = make("residual")
    images, targets = batch(net)
    first = net.relu(net.bn1(net.conv1(images)))
    second = net.relu(net.bn2(net.conv2(first)) + first)
    logits = net(images)
    scores = SCORERS["activation"](net, images, targets)
    for key, weight, output in [("conv1.weight", net.conv1.weight, first), ("conv2.weight", net.conv2.weight, second)]:
        factor = output.mean(0).abs().mean((1, 2))
        assert torch.allclose(scores[key], (weight.abs() * factor[:, None, None, None]).detach())
    assert torch.allclose(scores["linear.weight"], (net.linear.weight * logits.mean(0)[:, None]).abs().detach())


def test_activation_sees_a_functional_relu_too():
    class Functional(type(make("residual"))):
        def forward(self, images):
            self.relu = torch.nn.functional.relu
            return super().forward(images)

    net = make("residual")
    functional = copy.deepcopy(net)
    del functional.relu
    functional.__class__ = Functional
    one, two = scored("activation", net), scored("activation", functional)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_activation_as_run_is_the_layers_input():
    net = make("chain")
    images, targets = batch(net)
    scores = SCORERS["activation_run"](net, images, targets)
    second, hidden = net[:2](images), net[:5](images)
    factor = second.mean(0).abs().mean((1, 2))
    assert torch.allclose(scores["0.weight"], (net[0].weight.abs() * images.mean(0).abs().mean()).detach())
    assert torch.allclose(scores["2.weight"], (net[2].weight.abs() * factor[None, :, None, None]).detach())
    assert torch.allclose(scores["5.weight"], (net[5].weight * hidden.mean(0)).abs().detach())


# --- second derivatives

@every_net
def test_obd_is_half_the_explicit_hessians_diagonal_times_the_squared_weight(name):
    net = make(name)
    names = list(weights(net))
    matrix, _ = hessian(net, *batch(net), names)
    start = torch.cat([weights(net)[key].detach().flatten() for key in names])
    assert torch.allclose(flat(diagonal(net, batch(net)[0]), names), matrix.diagonal(), rtol=1e-8, atol=1e-14)
    assert torch.allclose(flat(scored("obd", net), names), matrix.diagonal() * start**2 / 2, rtol=1e-8, atol=1e-14)
    assert torch.allclose(flat(scored("obd_run", net), names), matrix.diagonal()**2 * start / 2, rtol=1e-8, atol=1e-14)


def test_obd_does_not_depend_on_its_chunks(monkeypatch):
    net = make("residual")
    images = batch(net, 9)[0]
    whole = diagonal(net, images)
    monkeypatch.setattr(obd, "CHUNK", 6)
    assert all(torch.allclose(whole[key], part, rtol=1e-10) for key, part in diagonal(net, images).items())


def test_obd_does_not_depend_on_the_number_of_threads(monkeypatch):
    net, before = make("residual"), torch.get_num_threads()
    images = batch(net, 9)[0]
    monkeypatch.setattr(obd, "CHUNK", 6)
    try:
        torch.set_num_threads(1)
        one = diagonal(net, images)
        torch.set_num_threads(3)
        three = diagonal(net, images)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one[key], three[key]) for key in one)


def test_both_ways_to_square_a_convolution_agree():
    signal, patches = torch.randn(3, 5, 2, 16, dtype=torch.float64), torch.randn(3, 9, 16, dtype=torch.float64)
    square = torch.einsum("ncop,nkp->ncok", signal, patches).square().sum((0, 1))
    assert torch.allclose(obd._by_pairs(signal, patches), square)
    by_image = obd._by_image(signal.flatten(1, 2), patches)
    assert torch.allclose(by_image.view(5, 2, 9).sum(0), square)


def test_the_curvature_is_computed_once_for_both_readings_and_anew_for_anything_else(monkeypatch):
    counted, plain = [], obd.diagonal
    monkeypatch.setattr(obd, "diagonal", lambda *given: counted.append(1) or plain(*given))
    net = make("batchnorm")
    images, labels = batch(net)

    def computed(*given):
        before = len(counted)
        for name in ("obd", "obd_run"):
            SCORERS[name](*given)
        return len(counted) - before

    assert computed(net, images, labels) == 1 and computed(net, images, labels) == 0
    assert computed(net, images.flip(0), labels) == 1
    with torch.no_grad():
        next(net.buffers()).add_(1e-12)
    assert computed(net, images, labels) == 1
    assert computed(net.float(), images.float(), labels) == 1
    handle = net[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    assert computed(net, images.float(), labels) == 1
    handle.remove()
    net.register_buffer("scale", torch.ones(1), persistent=False)
    assert computed(net, images.float(), labels) == 1
    net.scale.mul_(10)
    assert computed(net, images.float(), labels) == 1


class Skipping(nn.Sequential):
    """A network whose `forward` asks for a flag."""

    skips = False

    def forward(self, images):
        hidden = self[1](self[0](images))
        return self[2](hidden + images if self.skips else hidden)


class Adding(Skipping):
    def forward(self, images):
        return self[2](self[1](self[0](images)) + images)


def test_the_curvature_of_another_network_with_the_same_weights_is_its_own():
    layers, images, labels = (nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(5, 4), torch.arange(5) % 3
    plain, skipping = Skipping(*layers), Skipping(*layers)
    skipping.skips, Adding.__name__ = True, Skipping.__name__   # two classes may share their name
    found = [SCORERS["obd"](net, images, labels)["0.weight"] for net in (plain, skipping, plain, Adding(*layers))]
    assert torch.equal(found[1], found[3]) and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("score", ["obd", "obd_run", "synflow"])
def test_eval_mode_is_the_scorers_own_affair(score):
    net = make("batchnorm")
    evaluating, training = scored(score, net), scored(score, net.train())
    assert all(torch.equal(evaluating[key], training[key]) for key in evaluating)


def test_a_single_class_has_no_curvature():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)).eval()
    for name in ("obd", "obd_run"):
        scores = SCORERS[name](net, torch.randn(4, 1, 2, 2), torch.zeros(4, dtype=torch.long))
        assert scores.keys() == weights(net).keys() and not any(score.any() for score in scores.values())


@pytest.mark.parametrize("score", ["gradient", "grasp", "synflow", "obd"])
def test_scores_are_the_same_in_inference_mode(score):
    net = make("batchnorm")
    images, labels = batch(net)
    expected = SCORERS[score](net, images, labels)
    with torch.inference_mode():
        found = SCORERS[score](net, images, labels)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_image_is_enough_where_batchnorm_takes_its_stored_statistics():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    images, labels = torch.randn(1, 4), torch.tensor([1])
    assert SCORERS["obd"](net, images, labels)["0.weight"].shape == (5, 4)
    for name in ("gradient", "activation", "grasp", "grasp_run"):
        with pytest.raises(UserError, match="no variance"):
            SCORERS[name](net, images, labels)


@pytest.mark.parametrize("score", sorted(set(SCORERS) - {"random"}))
def test_a_relu_that_works_in_place_changes_no_score(score):
    net, in_place = make("chain"), make("chain")
    for module in in_place.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    one, other = scored(score, net), scored(score, in_place)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_obds_columns_are_a_root_of_the_logits_hessian():
    p = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    columns = obd._columns(p)
    assert columns.shape == (2, 3, 3)
    assert torch.allclose(torch.einsum("cni,cnj->nij", columns, columns), torch.diag_embed(p) - p[:, :, None] * p[:, None])


def test_obd_refuses_layers_that_it_cannot_square():
    class Twice(nn.Sequential):
        def forward(self, images):
            return self[1](self[0](self[0](images)))

    for net in (nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(8, 2)),
                Twice(nn.Linear(4, 4), nn.Linear(4, 2))):
        shape = (3, 2, 2, 2) if isinstance(net[0], nn.Conv2d) else (3, 4)
        with pytest.raises(UserError, match="OBD does not apply to 0"):
            SCORERS["obd"](net, torch.randn(shape), torch.zeros(3, dtype=torch.int64))


@every_net
@pytest.mark.parametrize("temperature", [1, 200])
def test_grasp_is_the_weight_times_the_hessian_times_the_gradient(name, temperature):
    net = make(name)
    names = list(weights(net))
    matrix, slope = hessian(net, *batch(net), names, temperature)
    expected = torch.cat([weights(net)[key].detach().flatten() for key in names]) * (matrix @ slope)
    assert torch.allclose(flat(scored("grasp", net, temperature=temperature), names), expected, rtol=1e-8, atol=1e-16)
    if temperature == 200:
        assert torch.equal(flat(scored("grasp", net), names), flat(scored("grasp", net, temperature=200), names))
        assert torch.equal(flat(scored("grasp_run", net), names), flat(scored("grasp_run", net, temperature=200), names))
        assert torch.allclose(flat(scored("grasp_written", net), names), -expected, rtol=1e-8, atol=1e-16)


def test_grasps_positive_scores_raise_the_gradient_flow_when_kept():
    """Removing a weight changes the squared gradient norm by -2 x score, to first order."""
    net = make("perceptron")
    names = list(weights(net))
    loss, start = loss_of(net, *batch(net), names, 200)
    score = flat(scored("grasp", net), names)
    flow = lambda vector: torch.func.grad(loss)(vector).square().sum()
    step = 1e-5
    for index in (0, 7, 31):
        nudge = torch.zeros_like(start)
        nudge[index] = -step * start[index]
        change = (flow(start + nudge) - flow(start)) / step
        assert torch.allclose(change, -2 * score[index], rtol=1e-3)


@every_net
def test_grasp_as_run_takes_the_gradient_of_all_parameters(name):
    net = make(name)
    every = [key for key, _ in net.named_parameters()]
    matrix, slope = hessian(net, *batch(net), every, 200)
    both = torch.cat([value.detach().flatten() for value in net.parameters()]) * -(matrix @ slope)
    parts = dict(zip(every, both.split([value.numel() for value in net.parameters()])))
    scores = scored("grasp_run", net)
    assert all(torch.allclose(scores[key].flatten(), parts[key], rtol=1e-8, atol=1e-16) for key in scores)


# --- magnitudes in context

def lookahead(net, neighbours):
    """Equation 3.3, entry by entry."""
    names, scores = list(neighbours), {}
    for position, key in enumerate(names):
        weight = neighbours[key]
        score = torch.zeros_like(weight)
        before = neighbours[names[position - 1]] if position else None
        after = neighbours[names[position + 1]] if position + 1 < len(names) else None
        for index in torch.cartesian_prod(*[torch.arange(n) for n in weight.shape]):
            k, j = int(index[0]), int(index[1])
            value = weight[tuple(index)].abs()
            if before is not None:
                value = value * before[j // (weight.shape[1] // before.shape[0])].norm()
            if after is not None:
                spread = after.shape[1] // weight.shape[0]
                value = value * after[:, k * spread:(k + 1) * spread].norm()
            score[tuple(index)] = value
        scores[key] = score
    return scores


@every_net
def test_lookahead_is_its_definition(name):
    net = make(name)
    plain = {key: weight.detach() for key, weight in weights(net).items()}
    inner = dict(list(plain.items())[:-1])
    last = list(plain)[-1]
    for score, expected in [("lap", lookahead(net, plain)), ("lap_run", lookahead(net, inner) | {last: plain[last].abs()})]:
        found = scored(score, net)
        assert all(torch.allclose(found[key], expected[key]) for key in plain)


def test_lookahead_refuses_layers_that_do_not_chain():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(7, 2))
    with pytest.raises(UserError, match="1.weight has 2 outputs, but 3.weight"):
        SCORERS["lap"](net, None, None)


def lamp_by_definition(values):
    order = sorted(range(len(values)), key=lambda index: (values[index] ** 2, index))
    scores = [0.0] * len(values)
    for u, index in enumerate(order):
        total = sum(values[v] ** 2 for v in order[u:])
        scores[index] = values[index] ** 2 / total if total > 0 else 0.0
    return torch.tensor(scores, dtype=torch.float64)


@given(arrays("float32", st.integers(1, 12), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5])))
def test_lamp_is_its_definition_and_its_maximum_is_one(values):
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor(values)[None]
    score = SCORERS["lamp"](nn.Sequential(layer), None, None)["0.weight"].flatten()
    assert torch.allclose(score, lamp_by_definition([float(v) for v in values]), rtol=1e-12)
    assert score.max() == (1 if values.any() else 0)


# --- SynFlow

def test_synflow_is_conserved_through_a_chain_without_biases():
    """Every layer carries the whole flow R, and a hidden unit's incoming flow equals its outgoing flow."""
    net = NETS["chain"](bias=False).double()
    scores = SCORERS["synflow"](net, None, None)
    totals = torch.stack([score.sum() for score in scores.values()])
    assert torch.allclose(totals, totals[0].expand_as(totals)) and totals[0] > 0
    assert torch.allclose(scores["7.weight"].sum(0), scores["5.weight"].sum(1))


def test_synflow_is_its_definition():
    net = NETS["perceptron"]().double()
    for layer in (net[0], net[2], net[4]):
        nn.init.zeros_(layer.bias)
    one, two, three = (layer.weight.detach().abs() for layer in (net[0], net[2], net[4]))
    ones = lambda n: torch.ones(n, dtype=torch.float64)
    scores = SCORERS["synflow"](net, None, None)
    assert torch.allclose(scores["0.weight"], torch.outer(ones(3) @ three @ two, ones(6)) * one)
    assert torch.allclose(scores["2.weight"], torch.outer(ones(3) @ three, one @ ones(6)) * two)


def test_synflow_takes_the_absolute_value_of_every_parameter_and_buffer():
    net, mirrored = make("batchnorm"), make("batchnorm")
    with torch.no_grad():
        for value in [*mirrored.parameters(), *mirrored.buffers()]:
            value.copy_(value.abs())
    one, two = scored("synflow", net), scored("synflow", mirrored)
    assert all(torch.allclose(one[key], two[key]) for key in one)


def test_synflow_is_finite_on_resnet56_and_its_float32_reading_is_not():
    model = models.build("resnet56")
    assert all(score.dtype == torch.float64 for score in SCORERS["synflow"](model, None, None).values())
    assert any(not score.isfinite().all() for score in SCORERS["synflow_run"](model, None, None).values())


# ---- networks that a method does not apply to

@pytest.mark.parametrize("score", sorted(SCORERS))
def test_layers_whose_weights_would_silently_stay_are_refused_by_name(score):
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(8, 2))
    options = {"generator": torch.Generator().manual_seed(0)} if score == "random" else {}
    with pytest.raises(UserError, match="0 is a Conv1d"):
        SCORERS[score](model, torch.randn(2, 3, 4), torch.tensor([0, 1]), **options)


@pytest.mark.parametrize("curved", [nn.Tanh(), nn.GELU(), nn.Tanhshrink(), nn.Softmin(1), nn.LayerNorm(4), nn.RMSNorm(4),
                                    nn.GLU(), nn.BatchNorm1d(4, track_running_stats=False)])
def test_obd_refuses_what_is_not_piecewise_linear(curved):
    model = nn.Sequential(nn.Linear(3, 4), curved, nn.Linear(4, 2))
    with pytest.raises(UserError, match=f"OBD does not apply to 1: with {type(curved).__name__}"):
        SCORERS["obd"](model, torch.randn(2, 3), torch.tensor([0, 1]))


def test_lookahead_refuses_a_grouped_convolution():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 5), nn.Linear(7, 2))
    with pytest.raises(UserError, match="Lookahead pruning does not apply"):
        SCORERS["lap"](model, None, None)


@pytest.mark.parametrize("score", SCORERS)
def test_a_network_that_is_a_single_layer_is_scored(score):
    net, options = nn.Linear(4, 3).double(), {"generator": torch.Generator()} if score == "random" else {}
    inputs, targets = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([0, 1, 2, 0, 1])
    scores = SCORERS[score](net, inputs, targets, **options)
    assert {name: value.shape for name, value in scores.items()} == {"weight": (3, 4)}

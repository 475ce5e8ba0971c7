"""Architectures: parameter counts, layers in their order; initial weights: their distributions and their generator."""

import math

import pytest
import torch
from torch import nn

from lib import UserError, models, pruning
from lib.scorers.common import layers

NETS = [("cnn", 1.0), ("vgg16", 0.25), ("resnet20", 1.0)]
every_net = pytest.mark.parametrize("name,width", NETS)
every_init = pytest.mark.parametrize("init", models.INITS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def values(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])


# --- architectures

@pytest.mark.parametrize("name,classes,count", [
    ("cnn", 10, 431_080), ("vgg16", 10, 14_991_946), ("vgg16", 100, 15_038_116),
    ("resnet56", 10, 853_018), ("resnet56", 100, 858_868),
])
def test_parameters_are_as_many_as_in_the_released_code(name, classes, count):
    with torch.device("meta"):
        assert sum(value.numel() for value in models.build(name, classes).parameters()) == count


@pytest.mark.parametrize("name,count", [("cnn", 3), ("vgg16", 14), ("resnet20", 19), ("resnet32", 31),
                                        ("resnet44", 43), ("resnet56", 55), ("resnet110", 109)])
def test_every_layer_but_the_classifier_is_prunable(name, count):
    with torch.device("meta"):
        model = models.build(name)
    names = [key for key, value in model.named_parameters() if value.dim() > 1]
    assert list(pruning.prunable(model)) == names[:-1] and len(names) - 1 == count


def test_vgg16_is_shrinkbenchs_layer_by_layer():
    """C convolution, B BatchNorm, R ReLU, D dropout, P pooling, L linear."""
    model = models.build("vgg16", width=0.1)
    letters = "".join(type(module).__name__[0] if not isinstance(module, nn.MaxPool2d) else "P"
                      for module in [*model.features, *model.classifier])
    assert letters == "CBRDCBRP" * 2 + "CBRDCBRDCBRP" * 3 + "DLBRDL"
    dropped = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropped == [0.3] + [0.4] * 7 + [0.5, 0.5]
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert [m.eps for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == [1e-5]
    assert all(m.bias is not None for m in layers(model).values())


def test_resnets_convolutions_have_no_bias_and_its_shortcuts_no_weights():
    model = models.build("resnet56")
    convolutions = [layer for layer in layers(model).values() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [16] * 19 + [32] * 18 + [64] * 18
    assert [index for index, layer in enumerate(convolutions) if layer.stride == (2, 2)] == [19, 37]
    assert all(layer.bias is None and layer.kernel_size == (3, 3) for layer in convolutions)


def test_a_shortcut_takes_every_second_pixel_and_centres_the_old_channels():
    images = torch.randn(2, 3, 6, 6)
    shortcut = models.Block(3, 8, stride=2).shortcut(images)
    assert shortcut.shape == (2, 8, 3, 3) and torch.equal(shortcut[:, 2:5], images[:, :, ::2, ::2])
    assert not shortcut[:, :2].any() and not shortcut[:, 5:].any()


def test_a_block_is_its_equation():
    block, images = models.Block(3, 3, stride=1).eval(), torch.randn(2, 3, 6, 6)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(images)).clamp(min=0)))
    assert torch.equal(block(images), (inner + images).clamp(min=0))


def test_the_cnn_is_table_4_1():
    model, images = models.build("cnn"), torch.randn(3, 1, 28, 28)
    signal = images
    for layer in (model.conv1, model.conv2):
        signal = nn.functional.max_pool2d(nn.functional.conv2d(signal, layer.weight, layer.bias).clamp(min=0), 2)
    assert [tuple(w.shape) for w in pruning.prunable(model).values()] == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800)]
    hidden = (signal.reshape(3, 800) @ model.fc1.weight.T + model.fc1.bias).clamp(min=0)
    assert torch.allclose(model(images), hidden @ model.fc2.weight.T + model.fc2.bias, atol=1e-5)


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("classes,width", [(10, 0.2), (100, 0.001)])
def test_a_narrow_network_maps_images_to_logits(name, classes, width):
    model = models.build(name, classes, width).eval()
    assert model(torch.randn(2, *model.input_shape)).shape == (2, classes)


def test_width_multiplies_the_channels():
    for width, (first, second, hidden) in {1: (20, 50, 500), 0.2: (4, 10, 100), 2: (40, 100, 1000)}.items():
        model = models.build("cnn", 10, width)
        assert [layer.weight.shape[0] for layer in layers(model).values()] == [first, second, hidden, 10]
    channels = [layer.weight.shape[0] for layer in layers(models.build("vgg16", 7, 1 / 64)).values()]
    assert channels == [1, 1, 2, 2, 4, 4, 4, *[8] * 6, 8, 7]


@pytest.mark.parametrize("arguments", [("lenet",), ("cnn", 1), ("cnn", 10, 0), ("cnn", 10, -1), ("cnn", 10, math.nan),
                                       ("cnn", 10, math.inf), ("cnn", "10"), ("cnn", 10.0), ("cnn", 10, "1")])
def test_an_impossible_network_is_refused(arguments):
    with pytest.raises(UserError):
        models.build(*arguments)


# --- initial weights

@pytest.mark.parametrize("name", ["cnn", "vgg16"])
def test_own_weights_are_what_pytorchs_constructor_draws(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = models.build(name, width=0.2)
    other = models.build(name, width=0.2)
    models.initialise(other, "own", seeded(5))
    assert torch.equal(values(model), values(other))


def test_a_resnets_own_weights_are_kaiming_normal_and_its_bias_uniform():
    torch.manual_seed(0)
    model = models.build("resnet20")
    built = {name: layer.weight.std() for name, layer in layers(model).items()}
    models.initialise(model, "own", seeded())
    for name, layer in layers(model).items():
        std = math.sqrt(2 / layer.weight[0].numel())
        standard = layer.weight.detach().flatten() / std
        tolerance = 4 / math.sqrt(2 * len(standard))
        assert abs(standard.std() - 1) < tolerance and abs(built[name] / std - 1) < tolerance
        assert abs(standard.mean()) < 4 / math.sqrt(len(standard))
        assert standard.abs().max() > 2.2  # no uniform: that would end at 1.73
    assert 0 < model.linear.bias.abs().max() <= 1 / 8


@every_net
def test_variance_scaling_has_variance_one_over_fan_in_and_ends_at_two_sigma(name, width):
    model = models.build(name, 10, width)
    models.initialise(model, "variance_scaling", seeded())
    for layer in layers(model).values():
        fan_in = layer.weight[0].numel()
        scaled = layer.weight.detach().flatten() * math.sqrt(fan_in)
        assert abs(scaled.std() - 1) < 4 / math.sqrt(2 * len(scaled))
        cut = 2 / 0.87962566
        assert scaled.abs().max() <= cut * 1.0001
        if len(scaled) > 10_000:
            assert scaled.abs().max() > 0.99 * cut
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("shape", [(20, 1, 5, 5), (500, 800), (3, 7), (1, 1)])
def test_variance_scaling_draws_what_this_pytorch_does_and_an_older_one_did_not(shape):
    layer = nn.Conv2d(*shape[1::-1], shape[-1]) if len(shape) == 4 else nn.Linear(*shape[::-1])
    expected, generators = torch.empty(shape), (seeded(), seeded())
    std = math.sqrt(1 / layer.weight[0].numel()) / models.TRUNCATED_STD
    nn.init.trunc_normal_(expected, std=std, a=-2 * std, b=2 * std, generator=generators[0])
    models._variance_scaling(layer, False, generators[1])
    assert torch.equal(layer.weight, expected) and torch.equal(*(each.get_state() for each in generators))


@every_net
def test_xavier_normal_leaves_the_biases(name, width):
    model = models.build(name, 10, width)
    biases = {key: layer.bias.clone() for key, layer in layers(model).items() if layer.bias is not None}
    models.initialise(model, "xavier_normal", seeded())
    for layer in layers(model).values():
        outgoing, incoming = layer.weight.shape[:2]
        area = layer.weight[0, 0].numel()
        standard = layer.weight.detach().flatten() / math.sqrt(2 / (area * (incoming + outgoing)))
        assert abs(standard.std() - 1) < 4 / math.sqrt(2 * len(standard))
    assert biases and all(torch.equal(layers(model)[key].bias, bias) for key, bias in biases.items())


@every_net
@every_init
def test_initial_weights_come_from_their_generator_alone(name, width, init):
    drawn = []
    for global_seed, seed in [(1, 7), (2, 7), (2, 8)]:
        model = models.build(name, 10, width)
        models.initialise(model, "variance_scaling", seeded())  # the same biases to start from
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        models.initialise(model, init, seeded(seed))
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(values(model))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@every_init
def test_batchnorm_is_not_initialised(init):
    model = models.build("resnet20")
    torch.nn.init.constant_(model.bn1.weight, 3)
    models.initialise(model, init, seeded())
    assert (model.bn1.weight == 3).all()


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(UserError, match="xavier_normal"):
        models.initialise(models.build("cnn"), "xavier", seeded())

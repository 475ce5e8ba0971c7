"""No operation mixes the processor's tensors with an accelerator's: on a device that is only pretended.

`FakeTensorMode` follows shapes and devices without values, on any machine, and raises where two devices meet; PyTorch
lets a device be named for it. What needs values (a partition of scores, whether all are finite) is not seen here.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from lib import data as data_module
from lib import models, paths, pruning, trainer
from lib.lanes import Lanes
from lib.scorers import SCORERS, obd
from tests.test_trainer import noise, seeded


class Answers(TorchDispatchMode):
    """What a tensor without values says when it is asked for one: 1."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return True
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def card():
    """The name of a device that no machine has."""
    _setup_privateuseone_for_python_backend("card")
    return "card"


@pytest.fixture(autouse=True)
def pretended(card, monkeypatch):
    monkeypatch.setattr(obd, "_digest", lambda model, inputs: "")   # it reads values
    monkeypatch.setattr(obd, "_last", {})
    monkeypatch.setattr(obd, "_each", map)   # modes belong to a thread
    # `torch.tensor(..., device=)` does not know such a device.
    monkeypatch.setattr(data_module, "_statistics",
                        lambda mean, std, device: [torch.empty(len(mean), 1, 1, device=device)] * 2)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    with FakeTensorMode(), Answers():
        yield


def moved(module, device):
    """The module with all that it holds on the device. (`Module.to` does not take a pretended one.)"""
    for each in module.modules():
        for name, value in each._parameters.items():
            if value is not None:
                each._parameters[name] = nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device=device))
        for name, value in each._buffers.items():
            if value is not None:
                each._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)
    return module


@pytest.fixture(params=["cnn", "vgg16", "resnet20"])
def model(request, card):
    return moved(models.build(request.param, 10, 0.1), card)


@pytest.fixture
def data(model, card):
    return noise(model.input_shape, augmented=model.input_shape[0] == 3, train=32, test=16)._each(
        lambda values: torch.empty(values.shape, dtype=values.dtype, device=card))


def all_on(device, tensors):
    return {tensor.device.type for tensor in tensors.values()} == {device}


def test_the_pretence_notices_what_is_on_the_processor(model):
    with pytest.raises(RuntimeError, match="device"):
        model(torch.empty(4, *model.input_shape))


@pytest.mark.parametrize("score", SCORERS)
def test_scores_are_made_where_the_model_is(score, model, card):
    inputs, targets = torch.empty(4, *model.input_shape, device=card), torch.empty(4, dtype=torch.long, device=card)
    options = {"generator": seeded()} if score == "random" else {}
    assert all_on(card, SCORERS[score](model, inputs, targets, **options))


def test_calibration_and_audit_work_where_the_model_is(model, card):
    pruning.calibrate(model.train(), torch.empty(4, *model.input_shape, device=card))
    masks = {name: torch.empty(weight.shape, dtype=torch.bool, device=card)
             for name, weight in pruning.prunable(model).items()}
    assert all_on(card, paths.on_path(model, masks))


@pytest.mark.parametrize("count", [1, 2])
def test_an_epoch_is_trained_and_tested_where_the_models_are(count, model, data, card, monkeypatch):
    monkeypatch.setattr(pruning, "apply", lambda model, masks: None)   # it asks whether a mask keeps everything
    for network in (models.VGG16, models.ResNet):
        monkeypatch.delattr(network, "layout")   # what is pretended cannot be laid out anew
    learners = [trainer.Learner(each, {}, 0.1, "float32")
                for each in [model, moved(copy.deepcopy(model), card)][:count]]
    trainer.advance(learners, Lanes(torch.device(card), count), data, 1, 16, seeded())
    assert all_on(card, dict(learners[-1].model.named_parameters()))
    assert learners[-1].loss.device.type == learners[-1].marks.device.type == card
    trainer.evaluate(model, data)

"""What holds for every test: one thread, so that tests neither disturb each other nor differ by machine; no date; and draws
without a seed of their own that do not depend on the tests before."""

import os

import pytest
import torch

os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded_by_test():
    torch.manual_seed(0)

"""What holds for every test: one thread, so that tests neither disturb each other nor differ by machine; no date."""

import os

import torch

os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
torch.set_num_threads(1)

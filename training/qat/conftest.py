"""The tests run one thread each, so that sums are made in one order and a busy machine is left alone."""

import torch

torch.set_num_threads(1)

"""Where the laws and the golden cases run: on the CPU, or wherever `pytest --device` says.

Everything is moved there after it was made, so a tensor that the library makes in the wrong place is seen.
"""

from itertools import chain

import torch
from torch import nn

device = torch.device("cpu")
"""Set by conftest.py before any test is collected."""


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; one that has neither parameters nor buffers is where the tests run."""
    return next((x.device for x in chain(model.parameters(), model.buffers())), device)

"""Trace every mixer whole with torch.compile; run by test_mixers.py in a separate process."""

import warnings

import laws
import torch
from mixer_cases import CASES
from test_mixers import make

torch.set_num_threads(1)
# tracing an autograd function makes torch warn about torch's own code
warnings.filterwarnings("ignore", ".*autograd.function.Function.* should not be instantiated", DeprecationWarning)
for case in CASES:
    mixer = make(case)
    x = laws.random_input(mixer)
    torch.compiler.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="eager")
    laws.equal(compiled(x), mixer(x))

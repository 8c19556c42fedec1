"""The HiPPO memory in the configurations in which it is tested."""

from cases import WIDTH, Cases, Learners
from longreach.hippo import Laguerre
from longreach.mixers import HiPPOMemory
from longreach.mixers import HiPPOMemoryOptions as Options

CASES: Cases = {
    "hippo-memory": lambda: HiPPOMemory(WIDTH, d_state=4, n_signals=2),
    "hippo-memory-trained": lambda: HiPPOMemory(
        WIDTH, d_state=4, measure="legt", discretisation="zoh", dt=0.2, options=Options(dynamics_lr_scale=0.1)
    ),
    "hippo-memory-lmu": lambda: HiPPOMemory(
        WIDTH,
        d_state=4,
        measure="lmu",
        discretisation="backward",
        dt=0.1,
        options=Options(gate=False, memory_feedback=True, hidden_feedback=True),
    ),
    "hippo-memory-laguerre": lambda: HiPPOMemory(
        WIDTH,
        d_state=3,
        n_signals=2,
        measure="glagt",
        discretisation="forward",
        dt=0.3,
        options=Options(hidden_feedback=True, laguerre=Laguerre(alpha=0.3, beta=0.5)),
    ),
}

FINITE_STATE = set(CASES)

LEARNERS: Learners = {"HiPPOMemory": lambda width: HiPPOMemory(width, d_state=8, n_signals=8)}

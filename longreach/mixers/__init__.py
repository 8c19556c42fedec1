"""The sequence systems, one file each."""

from longreach.mixers.attention import Attention
from longreach.mixers.base import OptimHint, SequenceMixer, State, map_state, select_rows
from longreach.mixers.bigbird import BigBird
from longreach.mixers.bigs import BiGS
from longreach.mixers.butterfly_conv import ButterflyConv
from longreach.mixers.causal_luna import CausalLuna
from longreach.mixers.ckconv import CKConv
from longreach.mixers.dss import DSS, DSSOptions
from longreach.mixers.fnet import FNet
from longreach.mixers.gau import GAU
from longreach.mixers.gss import GSS
from longreach.mixers.h3 import H3, H3Options
from longreach.mixers.hippo_memory import HiPPOMemory, HiPPOMemoryOptions
from longreach.mixers.hyena import Hyena
from longreach.mixers.implicit_filter import FilterOptions
from longreach.mixers.kernel_network import KernelOptions
from longreach.mixers.learned_fft import TransformOptions
from longreach.mixers.linear_transformer import LinearTransformer
from longreach.mixers.linformer import Linformer
from longreach.mixers.liquid_s4 import LiquidS4
from longreach.mixers.local_attention import LocalAttention
from longreach.mixers.long_conv import LongConv
from longreach.mixers.longformer import Longformer
from longreach.mixers.luna import Luna
from longreach.mixers.mega import Mega, MegaOptions
from longreach.mixers.monarch_mixer import MonarchMixer
from longreach.mixers.nystromformer import Nystromformer
from longreach.mixers.performer import Performer, PerformerOptions
from longreach.mixers.reformer import Reformer
from longreach.mixers.rwkv4 import RWKV4
from longreach.mixers.rwkv5 import RWKV5
from longreach.mixers.rwkv6 import RWKV6
from longreach.mixers.rwkv7 import RWKV7
from longreach.mixers.rwkv_channel_mix import RWKVChannelMix
from longreach.mixers.s4 import S4, S4Options
from longreach.mixers.s4d import S4D, S4DOptions
from longreach.mixers.s5 import S5, S5Options
from longreach.mixers.sgconv import SGConv, SGConvOptions
from longreach.mixers.sinkhorn import Sinkhorn
from longreach.mixers.sparse_attention import SparseAttention, SparseOptions
from longreach.mixers.striped_hyena import StripedHyena
from longreach.mixers.synthesizer import Synthesizer, SynthesizerScores

__all__ = [
    "DSS",
    "GAU",
    "GSS",
    "H3",
    "RWKV4",
    "RWKV5",
    "RWKV6",
    "RWKV7",
    "S4",
    "S4D",
    "S5",
    "Attention",
    "BiGS",
    "BigBird",
    "ButterflyConv",
    "CKConv",
    "CausalLuna",
    "DSSOptions",
    "FNet",
    "FilterOptions",
    "H3Options",
    "HiPPOMemory",
    "HiPPOMemoryOptions",
    "Hyena",
    "KernelOptions",
    "LinearTransformer",
    "Linformer",
    "LiquidS4",
    "LocalAttention",
    "LongConv",
    "Longformer",
    "Luna",
    "Mega",
    "MegaOptions",
    "MonarchMixer",
    "Nystromformer",
    "OptimHint",
    "Performer",
    "PerformerOptions",
    "RWKVChannelMix",
    "Reformer",
    "S4DOptions",
    "S4Options",
    "S5Options",
    "SGConv",
    "SGConvOptions",
    "SequenceMixer",
    "Sinkhorn",
    "SparseAttention",
    "SparseOptions",
    "State",
    "StripedHyena",
    "Synthesizer",
    "SynthesizerScores",
    "TransformOptions",
    "map_state",
    "select_rows",
]

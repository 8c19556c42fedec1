"""Numerical operations on tensors: no parameters, no modules, no knowledge of any model."""

from longreach.ops.attention import attention
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.backend import OPS, BackendError, use_backend
from longreach.ops.block_attention import band_of_blocks, block_attention, merge_attention
from longreach.ops.block_diagonal import block_diagonal
from longreach.ops.cauchy import cauchy
from longreach.ops.cross_entropy import linear_cross_entropy
from longreach.ops.delta_rule import delta_rule
from longreach.ops.dense_conv import dense_conv
from longreach.ops.dplr import DPLRSystem, dplr_kernel, dplr_prefill, dplr_step, dplr_whole_output
from longreach.ops.gated_linear_attention import gated_linear_attention
from longreach.ops.linear_attention import linear_attention
from longreach.ops.linear_channels import linear_from_channels, linear_to_channels
from longreach.ops.linear_scan import linear_scan
from longreach.ops.liquid_scan import liquid_scan, liquid_step
from longreach.ops.long_conv import long_conv, low_pass
from longreach.ops.modal import ModalSystem, modal_kernel, modal_prefill, modal_step, padding_first
from longreach.ops.online_conv import OnlineConvState, init_online_conv, online_conv_prefill, online_conv_step
from longreach.ops.relative_attention import relative_attention
from longreach.ops.rising_modes import RisingModes, rising_kernel, rising_prefill, rising_step
from longreach.ops.rotary import rotary
from longreach.ops.short_conv import short_conv, short_conv_tail
from longreach.ops.token_shift import token_shift
from longreach.ops.transposed import transposed
from longreach.ops.vandermonde import vandermonde, vandermonde_adjoint
from longreach.ops.window import modal_window_prefill, modal_window_step, window_prefill
from longreach.ops.wkv import WKVState, init_wkv, wkv

__all__ = [
    "OPS",
    "AttentionMask",
    "BackendError",
    "DPLRSystem",
    "ModalSystem",
    "OnlineConvState",
    "RisingModes",
    "WKVState",
    "attention",
    "band_of_blocks",
    "block_attention",
    "block_diagonal",
    "cauchy",
    "delta_rule",
    "dense_conv",
    "dplr_kernel",
    "dplr_prefill",
    "dplr_step",
    "dplr_whole_output",
    "gated_linear_attention",
    "init_online_conv",
    "init_wkv",
    "linear_attention",
    "linear_cross_entropy",
    "linear_from_channels",
    "linear_scan",
    "linear_to_channels",
    "liquid_scan",
    "liquid_step",
    "long_conv",
    "low_pass",
    "merge_attention",
    "modal_kernel",
    "modal_prefill",
    "modal_step",
    "modal_window_prefill",
    "modal_window_step",
    "online_conv_prefill",
    "online_conv_step",
    "padding_first",
    "relative_attention",
    "rising_kernel",
    "rising_prefill",
    "rising_step",
    "rotary",
    "short_conv",
    "short_conv_tail",
    "token_shift",
    "transposed",
    "use_backend",
    "vandermonde",
    "vandermonde_adjoint",
    "window_prefill",
    "wkv",
]

"""Numerical operations on tensors: no parameters, no modules, no knowledge of any model."""

from longreach.ops.attention import attention
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.backend import OPS, BackendError, use_backend
from longreach.ops.block_attention import band_of_blocks, block_attention, merge_attention
from longreach.ops.block_diagonal import block_diagonal
from longreach.ops.butterfly import (
    butterfly_factor,
    butterfly_multiply,
    merge_factors,
    transpose_twiddle,
    unitary_twiddle,
)
from longreach.ops.butterfly_permutation import bit_reversal, permutation_twiddle, wavelet_order
from longreach.ops.butterfly_transform import (
    ButterflyTransform,
    apply_transform,
    circulant_transform,
    cosine_transform,
    fourier_transform,
    hadamard_transform,
    sine_transform,
    toeplitz_transform,
)
from longreach.ops.cauchy import cauchy
from longreach.ops.cooley_tukey import cooley_tukey, dft_matrix
from longreach.ops.cross_entropy import linear_cross_entropy
from longreach.ops.damped_average import damped_average
from longreach.ops.delta_rule import delta_rule
from longreach.ops.dense_conv import dense_conv
from longreach.ops.dplr import DPLRSystem, dplr_kernel, dplr_prefill, dplr_step, dplr_whole_output
from longreach.ops.filter_step import filter_step
from longreach.ops.gated_linear_attention import gated_linear_attention
from longreach.ops.linear import linear
from longreach.ops.linear_attention import linear_attention
from longreach.ops.linear_channels import linear_from_channels, linear_to_channels
from longreach.ops.linear_scan import linear_scan
from longreach.ops.liquid_scan import liquid_scan, liquid_step
from longreach.ops.long_conv import long_conv, low_pass
from longreach.ops.memory_step import memory_step
from longreach.ops.modal import (
    ModalRecurrence,
    ModalSystem,
    modal_kernel,
    modal_prefill,
    modal_step,
    padding_first,
)
from longreach.ops.monarch import monarch, monarch_dft
from longreach.ops.online_conv import OnlineConvState, init_online_conv, online_conv_prefill, online_conv_step
from longreach.ops.relative_attention import relative_attention
from longreach.ops.rising_modes import RisingModes, rising_kernel, rising_prefill, rising_step
from longreach.ops.rotary import rotary
from longreach.ops.short_conv import short_conv, short_conv_tail
from longreach.ops.structured_projection import project_butterfly, project_monarch
from longreach.ops.token_shift import token_shift
from longreach.ops.transposed import transposed
from longreach.ops.vandermonde import vandermonde, vandermonde_adjoint
from longreach.ops.window import modal_window_prefill, modal_window_step, window_prefill
from longreach.ops.wkv import wkv
from longreach.ops.wkv_state import WKVState, init_wkv

__all__ = [
    "OPS",
    "AttentionMask",
    "BackendError",
    "ButterflyTransform",
    "DPLRSystem",
    "ModalRecurrence",
    "ModalSystem",
    "OnlineConvState",
    "RisingModes",
    "WKVState",
    "apply_transform",
    "attention",
    "band_of_blocks",
    "bit_reversal",
    "block_attention",
    "block_diagonal",
    "butterfly_factor",
    "butterfly_multiply",
    "cauchy",
    "circulant_transform",
    "cooley_tukey",
    "cosine_transform",
    "damped_average",
    "delta_rule",
    "dense_conv",
    "dft_matrix",
    "dplr_kernel",
    "dplr_prefill",
    "dplr_step",
    "dplr_whole_output",
    "filter_step",
    "fourier_transform",
    "gated_linear_attention",
    "hadamard_transform",
    "init_online_conv",
    "init_wkv",
    "linear",
    "linear_attention",
    "linear_cross_entropy",
    "linear_from_channels",
    "linear_scan",
    "linear_to_channels",
    "liquid_scan",
    "liquid_step",
    "long_conv",
    "low_pass",
    "memory_step",
    "merge_attention",
    "merge_factors",
    "modal_kernel",
    "modal_prefill",
    "modal_step",
    "modal_window_prefill",
    "modal_window_step",
    "monarch",
    "monarch_dft",
    "online_conv_prefill",
    "online_conv_step",
    "padding_first",
    "permutation_twiddle",
    "project_butterfly",
    "project_monarch",
    "relative_attention",
    "rising_kernel",
    "rising_prefill",
    "rising_step",
    "rotary",
    "short_conv",
    "short_conv_tail",
    "sine_transform",
    "toeplitz_transform",
    "token_shift",
    "transpose_twiddle",
    "transposed",
    "unitary_twiddle",
    "use_backend",
    "vandermonde",
    "vandermonde_adjoint",
    "wavelet_order",
    "window_prefill",
    "wkv",
]

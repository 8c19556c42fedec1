"""RWKV-6 lives in the same published file as RWKV-5."""

from adapters.rwkv5 import adapt

__all__ = ["adapt"]

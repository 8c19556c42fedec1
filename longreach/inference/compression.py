"""The two compressors that everyone has, at their strongest: what a model must beat to have understood anything.

Sizes are those of one file alone, header and checksum included, as `gzip -9 < file` and `xz -9e < file` write it.
"""

import gzip
import lzma

PAGE = 4096


def gzip_size(content: bytes) -> int:
    """Bytes that `gzip -9` needs."""
    return len(gzip.compress(content, compresslevel=9, mtime=0))


def xz_size(content: bytes) -> int:
    """Bytes that `xz -9e` needs.

    The dictionary is no larger than the content, which changes nothing in the size and saves setting up 64 MiB of it.
    """
    dictionary = min(64 << 20, max(PAGE, 1 << max(len(content) - 1, 1).bit_length()))
    options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}
    return len(lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=[options]))

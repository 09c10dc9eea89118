"""What tells the formats of checkpoints apart, without the readers of each: most are never needed, and take time."""

from __future__ import annotations

from typing import Final

METADATA: Final = ".metadata"
"""The file that makes a directory a distributed checkpoint."""

DISTRIBUTED: Final = ".distcp"
"""How the names of its data files end."""

NPZ: Final = ".npz"
"""How the names of numpy's archives end."""

TORCH_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
"""How the names of files end that `torch.save` writes."""

LEGACY_START: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file begins that torch wrote before version 1.6: a pickle of its magic number."""

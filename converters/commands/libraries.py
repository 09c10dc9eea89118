"""What libraries are told before they are imported."""

from __future__ import annotations

import os


def one_blas_thread() -> None:
    """Keep numpy from starting a thread for each processor; call before it is imported.

    They would take longer to start than a small conversion, and are for products of matrices, of which a conversion
    has none. Not for commands that run models, nor for a library: there the process isn't ours alone.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

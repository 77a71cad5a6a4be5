"""Products of a sparse matrix with dense ones on the CPU: all that computes with active weights alone comes here.

Two kernels of torch multiply: CSR products by MKL, and `embedding_bag`, which FBGEMM computes as a weighted sum of
rows. The number of columns decides which one is faster. A third, `torch.sparse.sampled_addmm`, computes a product at
the active positions only. `experiments/benchmarks/inference.py` and `sparse_training.py` measure the gain, and where
there is none.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

MANY_COLUMNS = 32
"""From this many columns on, FBGEMM's vectorized sums are faster than MKL's product."""
DTYPES = (torch.float32, torch.float64)
"""Types that the kernels support."""


def csr_matrix(offsets: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Returns a CSR tensor (out, in) of its parts, unchecked.

    Args:
        offsets: (out + 1,), int32: position of each row's first value.
        columns: (active,), int32: column of each value.
        values: (active,).
        shape: (out, in).
    """
    _silence_beta_warning()
    return torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=False)


def compressed(weight: Tensor) -> Tensor:
    """Returns the CSR form of a dense matrix (out, in), with 32-bit indices: the kernels are faster with them."""
    _silence_beta_warning()
    csr = weight.detach().to_sparse_csr()
    return csr_matrix(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), (csr.shape[0], csr.shape[1]))


def multiply(matrix: Tensor, table: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns matrix @ table + bias, (out, columns).

    Args:
        matrix: CSR (out, in) with 32-bit indices.
        table: Dense (in, columns).
        bias: (out,), added to each column.
    """
    if table.shape[1] == 1:
        return multiply_vector(matrix, table[:, 0], bias)[:, None]
    if table.shape[1] < MANY_COLUMNS or table.dtype != torch.float32:
        return matrix @ table if bias is None else torch.addmm(bias[:, None], matrix, table)
    # An output is the weighted sum of the table's rows that it is connected to.
    sums = embedding_bag(
        matrix.col_indices(),
        table.contiguous(),
        matrix.crow_indices(),
        mode="sum",
        per_sample_weights=matrix.values(),
        include_last_offset=True,
    )
    return sums if bias is None else sums.add_(bias[:, None])


def multiply_vector(matrix: Tensor, vector: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns matrix @ vector + bias, (out,), for a CSR matrix (out, in) and a dense vector (in,)."""
    return matrix @ vector if bias is None else torch.addmv(bias, matrix, vector)


def add_sampled(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right.T to a CSR matrix (out, in) in place, at its active positions only.

    Args:
        sums: CSR (out, in) with 32-bit indices.
        left: Dense (out, columns).
        right: Dense (in, columns).
    """
    torch.sparse.sampled_addmm(sums, left, right.t(), out=sums)


@functools.cache
def kernels_exist(dtype: torch.dtype) -> bool:
    """Returns whether this build of torch has the kernels for a type, on the CPU."""
    if dtype not in DTYPES:
        return False
    indices = torch.tensor([0, 1, 1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    matrix = csr_matrix(*indices, torch.ones(1, dtype=dtype), (2, 2))
    try:
        for num_columns in (1, 2, MANY_COLUMNS):
            table = torch.ones(2, num_columns, dtype=dtype)
            multiply(matrix, table, torch.zeros(2, dtype=dtype))
            add_sampled(csr_matrix(*indices, torch.zeros(1, dtype=dtype), (2, 2)), table, table)
    except (RuntimeError, NotImplementedError):
        return False
    return True


@functools.cache
def _silence_beta_warning() -> None:
    """Lets torch say, unheard, that CSR tensors are in beta: it does so once in a process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        torch.zeros(1, 1).to_sparse_csr()

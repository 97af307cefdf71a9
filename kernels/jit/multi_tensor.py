"""Reader of the addresses in a table of `kernels.multi_tensor`, for Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def address(table_ptr, row, column: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr):
    """Returns a row's pointer to float32; the addresses are 64-bit, so no offset can wrap."""
    pointer = tl.load(table_ptr + row.to(tl.int64) * COLUMNS + column).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer

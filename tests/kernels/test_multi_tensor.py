"""The table of addresses that one launch over many tensors reads."""

import pytest
import torch

from wallclock.kernels.multi_tensor import lying_as, memory_order, table, table_rows

BLOCK = 64


def test_tables_are_found_again_and_cover_every_element_once(device):
    shapes = [(1,), (5,), (3 * BLOCK,), (2 * BLOCK + 1,), (), (8, 5, 3, 3)]
    tensors = [torch.zeros(shape, device=device) for shape in shapes]
    lists = (tensors, tensors, tensors)
    rows = table(lists, BLOCK)
    assert table(lists, BLOCK) is rows
    covered = [address + 4 * i for address, _, _, count, *_ in rows.tolist() for i in range(count)]
    assert covered == [t.data_ptr() + 4 * i for t in tensors for i in range(t.numel())]


def test_rows_beyond_two_to_the_31_elements():
    start, n = 1 << 40, 3 * 2**31 + 5  # 24 GB that no test needs to hold
    rows = table_rows([start], [n, n], 2**30)
    assert [row[0] for row in rows] == [start + i * 2**32 for i in range(7)]
    assert sum(row[1] for row in rows) == n and [row[2] for row in rows] == [i * 2**30 for i in range(7)]


def test_memory_order_ignores_dimensions_of_one():
    assert memory_order(torch.zeros(7, 1, 1, 1)) == (0,)
    assert memory_order(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)) == (0, 2, 3, 1)


def test_memory_with_gaps_is_refused():
    with pytest.raises(ValueError, match="not dense in memory; call .contiguous"):
        memory_order(torch.zeros(4, 6)[:, ::2])


def test_another_memory_order_is_copied_and_the_same_is_not():
    like = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 4, 5)
    found = lying_as(x, like)
    assert found.stride() == like.stride() and torch.equal(found, x)
    assert lying_as(found, like) is found

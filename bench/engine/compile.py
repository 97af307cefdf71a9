"""Compiles networks without a limit on their number of graphs."""

from typing import Any

import torch
from torch import nn

GRAPHS = 1 << 16


def compile_network(network: nn.Module) -> Any:
    """Returns a network that compiles a graph for each shape, type and set of frozen parameters that it meets.

    By default Dynamo stops compiling a function at its ninth graph, and runs eagerly from then on, with only a warning.
    Variants and trials that take turns in one process share their networks' code, so that the later ones would be
    timed as eager ones. The limit here is one that no run reaches.
    """
    from torch._dynamo import config

    config.recompile_limit = config.accumulated_recompile_limit = GRAPHS
    config.fail_on_recompile_limit_hit = True
    return torch.compile(network, dynamic=False)

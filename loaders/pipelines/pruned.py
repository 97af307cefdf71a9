"""Pruning: leaves out of an epoch some of the samples whose loss was small when they were last seen."""

import torch

from wallclock.loaders.pipelines.epochs import permutation


class EasySamples:
    """Chooses the easy samples by their last losses, which stay on the device.

    The number of samples that an epoch leaves out is fixed beforehand, so that a schedule can be planned; the losses
    decide which. The easy samples that stay weigh more: on average, the gradient is that of all samples. Where
    no easy sample stays, it is that of the other samples.

    Args:
        count: number of samples.
        easy: share of the samples that counts as easy, those with the smallest losses.
        rate: share of the easy samples that an epoch leaves out, drawn anew for each epoch.
        seed: seed of the draw, which also depends on the epoch.
        device: device of losses and indices.

    Source: after InfoBatch, Qin et al., https://arxiv.org/abs/2303.04947, which takes the mean loss as the limit and
        draws each sample by itself
    """

    def __init__(self, count: int, *, easy: float, rate: float, seed: int, device: torch.device) -> None:
        self.rate, self._seed = rate, seed
        self.easy_count = int(easy * count)
        self.left_out_count = int(rate * self.easy_count)
        self.losses = torch.full((count,), torch.inf, device=device)
        self._weights = torch.ones(count, device=device)

    def kept(self, order: torch.Tensor, epoch: int) -> torch.Tensor:
        """Returns an epoch's order without the samples that it leaves out, and sets the weights of the rest.

        The order holds each sample once, int64 [count]; the result is int64 [count - left_out_count].
        """
        easy = self.losses.argsort(stable=True)[: self.easy_count]
        drawn = permutation(self.easy_count, self._seed, epoch, order.device)
        left_out = easy[drawn[: self.left_out_count]]
        staying = self.easy_count - self.left_out_count
        self._weights.fill_(1).index_fill_(0, easy, self.easy_count / staying if staying else 0.0)
        # A stable sort moves the left-out ones to the end: a mask would have to wait for the device to count.
        last = torch.zeros_like(order).index_fill_(0, left_out, 1)[order].argsort(stable=True)
        return order[last][: len(order) - self.left_out_count]

    def all(self, order: torch.Tensor) -> torch.Tensor:
        """Sets all weights to 1 and returns the order unchanged, for an epoch that leaves nothing out."""
        self._weights.fill_(1)
        return order

    def weighted(self, losses: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Stores the losses of a batch, [N], and returns them weighted, without waiting for the device.

        The losses have their graph; `indices` are those of the samples in the data set, int64 [N].
        """
        self.losses.index_copy_(0, indices, losses.detach())
        return losses * self._weights[indices]

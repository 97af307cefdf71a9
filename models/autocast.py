"""What autocast does to the input of a convolution, for operations that it does not know."""

import torch


def autocast_to(x: torch.Tensor) -> torch.Tensor:
    """Returns x as autocast would hand it to a convolution: in its type where it is on, as it is where it is not."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))

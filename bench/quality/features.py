"""Feature extractors: those of torch-fidelity, with weights from a path, and the CIFAR network of this suite.

Shape legend: N images, H, W height and width, D features.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wallclock.bench.measure.numerics import numerics
from wallclock.bench.measure.timing import RunClocks
from wallclock.bench.tasks.cifar.trainer import Trainer
from wallclock.kernels.augment import MEAN, STD
from wallclock.loaders.batches import DataError, Split
from wallclock.models.networks.sprint import Sprint
from wallclock.models.recipes import get_recipe

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

SPRINT, LAYER = "wallclock-sprint", "pooled"
BATCH = 256
Features = Callable[[torch.Tensor], torch.Tensor]  # uint8 [N, 3, H, W] on the device to float [N, D]


def fidelity() -> Any:
    """Registers the extractor `SPRINT` with torch-fidelity, and returns the module `torch_fidelity`.

    Raises:
        ValueError: if torch-fidelity is not installed.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ValueError("FID and the like need torch-fidelity; install it with: pip install 'wallclock[quality]'")
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if SPRINT not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(SPRINT, _sprint_extractor())
    return torch_fidelity


def _sprint_extractor() -> "type[FeatureExtractorBase]":
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class SprintExtractor(FeatureExtractorBase):
        """The sprint network without its head, with weights from a file that `save_network` wrote."""

        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **others: Any
        ) -> None:
            super().__init__(name, features_list)
            if feature_extractor_weights_path is None:
                raise ValueError(
                    f"{SPRINT} needs weights; make them with wallclock.bench.quality.features.train_network"
                )
            self.network = _load_network(Path(feature_extractor_weights_path))

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.network.features(_normalised(images)),)

    return SprintExtractor


def _normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def train_network(
    split: Split, path: Path, *, device: torch.device, epochs: float = 4.0, batch_size: int = 500
) -> Path:
    """Trains the sprint network on labelled images, for features that need no download; returns `path`.

    `split` are the labelled images that samples are judged against, or images like them; `path` is the safetensors file
    to write; `epochs` may be a fraction.

    Raises:
        ValueError: if the training images do not fill a batch.
    """
    base = get_recipe("sprint", device.type)
    plain = replace(base.implementations, compile=False)  # compiling takes longer than these few epochs
    recipe = replace(base, epochs=epochs, batch_size=batch_size, resolutions=(), tta=None, implementations=plain)
    with numerics(seed=0, keep_heap=device.type == "cpu"):
        trainer = Trainer(recipe, split, device=device, seed=0, clocks=RunClocks(device))
        for _ in trainer.train():
            pass
        assert isinstance(trainer.model, Sprint)
        return save_network(trainer.model, path)


def save_network(network: Sprint, path: Path) -> Path:
    """Stores a sprint network as safetensors, and returns `path`."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}, path)
    return path


def _load_network(path: Path) -> Sprint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
        widths = [state[f"groups.{group}.conv2.weight"].shape[0] for group in range(3)]
        network = Sprint(len(state["head.weight"]), widths=widths)
        network.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{path} holds no sprint network ({error}); make one with wallclock.bench.quality.features.train_network"
        ) from None
    return network.eval()


def feature_extractor(path: Path, *, name: str = SPRINT, device: torch.device) -> Features:
    """Returns a function that computes features with a network whose weights are in a file; downloads nothing.

    Args:
        path: file of weights: safetensors from `train_network`, or the file that torch-fidelity publishes for `name`.
        name: name of an extractor registered with torch-fidelity, such as "inception-v3-compat".
        device: the device that computes the features.

    Raises:
        DataError: if the file is missing, or holds no sprint network where `name` is `SPRINT`.
        ValueError: if there is no such extractor, or torch-fidelity is missing.
    """
    fidelity()
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    from torch_fidelity.utils import create_feature_extractor

    if name not in FEATURE_EXTRACTORS_REGISTRY:
        raise ValueError(f"no feature extractor '{name}'; expected one of {', '.join(FEATURE_EXTRACTORS_REGISTRY)}")
    if not path.is_file():
        raise DataError(f"no weights at {path}; give the path of those of {name}")
    layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
    network = create_feature_extractor(
        name, [layer], cuda=device.type == "cuda", feature_extractor_weights_path=str(path), verbose=False
    )
    return lambda images: network(images)[0]


@torch.no_grad()
def extract(features: Features, images_NHWC: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Computes on `device` the features of images, uint8 [N, H, W, 3], and returns them on the CPU, float32 [N, D]."""
    parts = [features(batch.permute(0, 3, 1, 2).to(device)).float().flatten(1) for batch in images_NHWC.split(BATCH)]
    return torch.cat([part.cpu() for part in parts])

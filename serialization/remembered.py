"""What batch norm remembers of a generator's training, which no shape tells: activation and z.

Its running averages are those of maps that came of the right activation and latents, each layer
normalised by the batch. With others in their place the maps have other means and variances.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENTS = 64
LARGEST = 256  # pixels of a map, after which no fourth norm is looked at: it takes time
EPS = 1e-5


@torch.no_grad()
def misfit(generator: nn.Sequential, z_dist: str) -> float:
    """Return how far maps are from what batch norm remembers: KL of normals, a mean over channels.

    `generator` is a flat `main` after an `input`, see `construct`. It is left as it was.

    Returns:
        Nats; infinity if nothing is remembered, or no numbers that a map can have.
    """
    random = torch.Generator().manual_seed(0)
    shape = LATENTS, generator.z_dim
    if z_dist == "normal":
        z = torch.randn(shape, generator=random)
    else:
        z = torch.rand(shape, generator=random) * 2 - 1
    layers = list(generator.main)
    norms = [i for i, layer in enumerate(layers) if hasattr(layer, "running_mean")]
    x, distances = generator.input(z), []
    for layer in layers[: norms[-1] + 1 if norms else 0]:
        if not hasattr(layer, "running_mean"):
            x = layer(x)
            continue
        distances.append(_distance(x, layer))
        if len(distances) > 2 and x.shape[2:].numel() > LARGEST:
            break
        x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
    mean = torch.stack(distances).mean().item() if distances else float("inf")
    return mean if mean >= 0 else float("inf")


def _distance(x: Tensor, norm: nn.Module) -> Tensor:
    """Return the KL divergence of a map's channels (N, C, ...) from those that `norm` remembers."""
    variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1])
    remembered = norm.running_var + EPS  # not its own, which may hide all differences
    ratio = (variance + EPS) / remembered
    return ((ratio + (mean - norm.running_mean) ** 2 / remembered - 1 - ratio.log()) / 2).mean()

"""What batch norm remembers of a generator: its activation, their order, its latents."""

import pytest
import torch
from strangers import TAIL, at_random, chain, lived, same_images, up
from torch import nn

from models import Generator


@pytest.mark.parametrize("z_dist", ["normal", "uniform"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2)], ids=["relu", "leaky"])
def test_batch_norm_remembers_activation_and_latents(tmp_path, capsys, activation, z_dist):
    layers = [*up(32, 64, 4), *up(64, 48, *TAIL), *up(48, 32, *TAIL)]
    layers = [activation if isinstance(layer, nn.ReLU) else layer for layer in layers]
    stranger = at_random(chain(*layers, nn.ConvTranspose2d(32, 3, *TAIL), nn.Tanh()))
    torch.save(lived(stranger, 32, z_dist).state_dict(), tmp_path / "a.pth")
    generator = same_images(tmp_path / "a.pth", stranger, 32)
    assert generator.z_dist == z_dist
    assert f"--z_dist {z_dist} as batch norm remembers" in capsys.readouterr().out
    for name in ("running_mean", "running_var"):  # and what it can't have met tells nothing
        stranger[2].get_buffer(name).fill_(-7)
    torch.save(stranger.state_dict(), tmp_path / "a.pth")
    assert Generator.from_checkpoint(tmp_path / "a.pth").z_dist == "normal"
    assert "--z_dist normal assumed" in capsys.readouterr().out


class Habitual(nn.Module):
    """Layers by name, so that no numbers tell what stands between them."""

    def __init__(self, activation=torch.relu, norm_last=False, bare_start=False, eps=1e-5):
        super().__init__()
        self.habits = activation, norm_last, bare_start
        self.fc = nn.Linear(32, 64 * 16)
        self.deconv1, self.bn1 = nn.ConvTranspose2d(64, 48, *TAIL), nn.BatchNorm2d(48, eps)
        self.deconv2, self.bn2 = nn.ConvTranspose2d(48, 32, *TAIL), nn.BatchNorm2d(32, eps)
        self.deconv3 = nn.ConvTranspose2d(32, 3, *TAIL)

    def forward(self, z):
        activation, norm_last, bare_start = self.habits
        x = self.fc(z).view(-1, 64, 4, 4)
        x = x if bare_start else activation(x)
        for layer, norm in ((self.deconv1, self.bn1), (self.deconv2, self.bn2)):
            x = norm(activation(layer(x))) if norm_last else activation(norm(layer(x)))
        return self.deconv3(x).tanh()


HABITS = {
    "as usual": {},
    "batch norm after it": {"norm_last": True},
    "none after the linear layer": {"bare_start": True},
    "batch norm's eps 0.8": {"eps": 0.8},
    "--activation elu as": {"activation": nn.ELU()},
    "--activation leaky_relu_0.1 as": {"activation": nn.LeakyReLU(0.1)},
}


@pytest.mark.parametrize("said", HABITS)
def test_batch_norm_remembers_habits(tmp_path, capsys, said):
    stranger = lived(at_random(Habitual(**HABITS[said])), 32)
    torch.save(stranger.state_dict(), tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", stranger, 32)
    line = capsys.readouterr().out
    assert [one for one in HABITS if one in line] == [said] * (said != "as usual")

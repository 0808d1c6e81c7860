"""Residual networks for small images, with option-A (parameter-free) shortcuts."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Depth, Size, checked
from fedlab_core.models.layers import check_size, conv, norm2d


@checked
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: every second pixel, new channels filled with zeros (He 2016)."""

    def __init__(self, width: Size, units: Size, stride: Size, norm: str, groups: Size) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(width, units, norm, stride), norm2d(units, norm, groups)
        self.conv2, self.norm2 = conv(units, units, norm), norm2d(units, norm, groups)
        self.stride, self.pad = stride, units - width

    def shortcut(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, units, H / stride, W / stride), without parameters."""
        if self.stride == 1 and not self.pad:
            return x
        before = self.pad // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.pad - before))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


@checked
class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016, section 4.2: 269,722 parameters and 19 BN layers at depth 20 with BN.

    Convolution and Linear weights are Kaiming-normal; `gamma_init` "uniform" draws the normalisation layers' gains from
    U(0, 1), as the published code of FedTAN (Wang et al., arXiv 2301.02982) does. With norm "none" or "weight" nothing
    bounds the sum over the blocks, whose variance about doubles at each: depth 20 then needs a far smaller step.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: Size,
        norm: str,
        blocks: Depth,
        channels: Sequence[int] = (16, 32, 64),
        groups: Size = 2,
    ) -> None:
        super().__init__()
        check_size(input_shape, 2 ** (len(channels) - 1), f"for {len(channels) - 1} strides of 2")
        width = channels[0]
        self.conv, self.norm = conv(input_shape[0], width, norm), norm2d(width, norm, groups)
        self.stages = nn.ModuleList()
        for i, units in enumerate(channels):
            stage = []
            for j in range(blocks):
                stage.append(BasicBlock(width, units, 2 if i and not j else 1, norm, groups))
                width = units
            self.stages.append(nn.Sequential(*stage))
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

"""Dense and convolutional image classifiers: McMahan's two, and small ones whose normalisation is an argument."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Size, checked
from fedlab_core.models.layers import check_size, conv, linear, norm1d, norm2d


@checked
class MLP(nn.Module):
    """Dense layers with ReLU; a normalisation layer, if any, stands between each Linear and its ReLU.

    `2nn` is McMahan et al. 2017, section 3: two hidden layers of 200, 199,210 parameters on MNIST.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: Size,
        norm: str,
        hidden: Sequence[int] = (64, 64),
        groups: Size = 2,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        width = torch.Size(input_shape).numel()
        for units in hidden:
            self.blocks.append(nn.Sequential(linear(width, units, norm), norm1d(units, norm, groups), nn.ReLU()))
            width = units
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@checked
class CNN(nn.Module):
    """The CNN of McMahan et al. 2017, section 3: 1,663,370 parameters on MNIST.

    The count fixes "same" padding; the ReLU after each convolution is the usual reading, the text does not state it.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: Size) -> None:
        super().__init__()
        check_size(input_shape, 4, "for two 2x2 poolings")
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.dense = nn.Linear(64 * (height // 4) * (width // 4), 512)
        self.head = nn.Linear(512, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # the same as pooling after the ReLU, which has a quarter to do
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return F.relu(self.dense(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@checked
class SmallCNN(nn.Module):
    """3x3 convolutions with normalisation and ReLU, max-pooling between them and the mean over positions at the end.

    The mean makes the parameters independent of the image size, so weights learnt at 28x28 fit 8x8 images as well.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: Size,
        norm: str,
        channels: Sequence[int] = (8, 16, 16),
        groups: Size = 2,
    ) -> None:
        super().__init__()
        check_size(input_shape, 2 ** (len(channels) - 1), f"for {len(channels) - 1} 2x2 poolings")
        self.blocks = nn.ModuleList()
        width = input_shape[0]
        for units in channels:
            self.blocks.append(nn.Sequential(conv(width, units, norm), norm2d(units, norm, groups), nn.ReLU()))
            width = units
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if i else x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

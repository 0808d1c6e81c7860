"""A character-level LSTM language model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Depth, Size, checked


@checked
class CharLSTM(nn.Module):
    """Character model of McMahan et al. 2017, section 3: embedding 8, two LSTM layers of 256, one softmax per position.

    (B, T) int64 -> logits (B, T, V). With the paper's 258 symbols it has 867,090 parameters, 512 more than the 866,578
    printed there: that count fits one bias vector and three peephole vectors per layer, while torch has two biases and
    no peepholes. `fused=False` computes the same function with elementary operations, slower, but usable under
    `torch.func.vmap`, which has no rule for `nn.LSTM`. The length T of `input_shape` does not matter.

    Attributes:
        causal: outputs depend on their own and earlier positions only, so that padding at the end may be cut off.
    """

    causal = True

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: Size,
        embedding: Size = 8,
        hidden: Size = 256,
        layers: Depth = 2,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.fused = fused
        weight = torch.empty(num_classes, embedding)
        if not weight.is_meta:  # where it would import torch's compiler, for two seconds, and draw nothing
            nn.init.normal_(weight)
        self.embedding = nn.Embedding(num_classes, embedding, _weight=weight)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        if self.fused:
            return self.lstm(x)[0]
        for layer in range(self.lstm.num_layers):
            w, u, b, c = (getattr(self.lstm, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            hidden = cell = x.new_zeros(len(x), u.shape[1])
            outputs = []
            for gates in F.linear(x, w, b + c).unbind(1):
                i, f, g, o = (gates + hidden @ u.t()).chunk(4, -1)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * cell.tanh()
                outputs.append(hidden)
            x = torch.stack(outputs, 1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

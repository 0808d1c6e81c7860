"""How long a round's matrix products and convolutions take by themselves: no engine that calls them can be faster."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tasks import BenchTask
from fedlab_core.local.cores import cores, intra_op_threads

CLIENTS = 10  # of a round; their dense layers may also be computed as one batched product


def products_alone(task: BenchTask) -> float:
    """Seconds of one round's forward and backward products and convolutions, steps of dense weights included.

    Each is called again and again on one core and the fastest call counts, as if all cores worked at that pace: a lower
    bound for every engine that computes with these calls.
    """
    model, uses = task.network().to(memory_format=torch.channels_last), []
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [
        layer.register_forward_hook(lambda m, inputs, output: uses.append((m, *inputs, output))) for layer in layers
    ]
    data = task.data()
    with torch.no_grad(), intra_op_threads(1):
        model(data.prepare(data.x[: task.batch]).contiguous(memory_format=torch.channels_last))
        for hook in hooks:
            hook.remove()
        seconds = 0.0
        for i, (layer, x, y) in enumerate(uses):
            if isinstance(layer, nn.Conv2d):
                seconds += _convolution(layer, x, y, i > 0)
            else:
                seconds += min(_dense(layer, x, y, i > 0, clients) for clients in (1, CLIENTS))
    return seconds * CLIENTS * (task.examples // task.batch) / cores()


def _convolution(layer: nn.Conv2d, x: Tensor, y: Tensor, inputs: bool) -> float:
    """Seconds of a step of one client; with the gradient of the input where there is a layer before."""
    where = (layer.stride, layer.padding, layer.dilation)
    bias = None if layer.bias is None else [len(layer.bias)]
    wanted = [inputs, True, bias is not None]
    backward = torch.ops.aten.convolution_backward
    return _least(lambda: F.conv2d(x, layer.weight, layer.bias, *where, layer.groups)) + _least(
        lambda: backward(y, x, layer.weight, bias, *where, False, [0, 0], layer.groups, wanted)
    )


def _dense(layer: nn.Linear, x: Tensor, y: Tensor, inputs: bool, clients: int) -> float:
    """The same, per client, of one product for some clients."""
    x, g, weight = (tensor.expand(clients, *tensor.shape).contiguous() for tensor in (x, y, layer.weight))
    seconds = _least(lambda: torch.bmm(x, weight.transpose(1, 2)))
    seconds += _least(lambda: torch.bmm(g, weight)) if inputs else 0.0
    return (seconds + _least(lambda: weight.baddbmm_(g.transpose(1, 2), x, alpha=-1e-9))) / clients


def _least(call: Callable[[], Any], seconds: float = 0.5) -> float:
    """Seconds of the fastest call within about the given time."""
    least, end = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call()
        least = min(least, time.perf_counter() - began)
    return least

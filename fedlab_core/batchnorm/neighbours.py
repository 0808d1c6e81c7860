"""FedTAN's neighbours: other answers to what should happen to batch normalisation, and a fair comparison of them.

Most need no code here. FedAvg with BN, SiloBN, FedBN and FixBN's second stage are policies
(`state.BATCH_NORM_POLICIES`), so is merging statistics by total variance; GroupNorm, LayerNorm and weight
standardisation are norms of the models. Left out: BN-SCAFFOLD (arXiv 2410.03281), whose rule is known here from its
abstract only, not exactly enough to build.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from fedlab_core.batchnorm.measures import fixed_batches, in_training
from fedlab_core.check import Many, Measured, Natural, checked
from fedlab_core.federation import Federation
from fedlab_core.local.cores import single_threaded
from fedlab_core.partition import label_counts
from fedlab_core.randomness import generator
from fedlab_core.state import State, batch_norms, get_state


@checked
@dataclass(frozen=True)
class FourWays:
    """Test accuracy of a run whose clients keep batch-norm tensors of their own (FedBN, SiloBN), looked at in four
    ways.

    Attributes:
        own_data: each client's own model on test data distributed like its own training data. Under label skew nearly
            trivial, since a client that has seen two classes is asked for two.
        global_data: the clients' own models on the whole test set.
        averaged: one model, with the clients' batch-norm tensors averaged; what other methods' accuracy is compared
            with.
        reestimated: the same model with running statistics estimated anew on the pooled training data.
    """

    own_data: Measured
    global_data: Measured
    averaged: Measured
    reestimated: Measured

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


@checked
def four_ways(federation: Federation) -> FourWays:
    """Evaluates the current round of a run in the four ways; clients count by their examples.

    "Its own distribution" means the client's label shares and its own input transform.
    """
    data, partition = federation.dataset, federation.partition
    counts = label_counts(partition, data.y, data.num_classes).double()
    shares, weights = counts / counts.sum(1, keepdim=True), counts.sum(1) / counts.sum()
    own = general = 0.0
    for client, weight in enumerate(weights.tolist()):
        state = federation.client_state(client)
        own += weight * (shares[client] @ class_accuracy(federation, state, client)).item()
        general += weight * federation.evaluate(state)["test_accuracy"]
    return FourWays(
        own_data=own,
        global_data=general,
        averaged=federation.evaluate()["test_accuracy"],
        reestimated=federation.evaluate(reestimate(federation))["test_accuracy"],
    )


@checked
def class_accuracy(federation: Federation, state: State, client: Natural | None = None) -> Tensor:
    """(classes,) test accuracy of a state by true class, float64; 0 where the test set has no example of a class.

    Args:
        client: look at the test images through this client's input transform, if the partition has one.
    """
    data, settings = federation.dataset, federation.settings
    model = in_training(federation, state).eval()
    hits = torch.zeros(data.num_classes, dtype=torch.float64)
    with torch.no_grad(), single_threaded():
        for x, y in zip(data.test_x.split(512), data.test_y.split(512), strict=True):
            if client is not None and federation.partition.transform is not None:
                x = federation.partition.transform.apply(x, client)
            x = data.prepare(x).to(settings.device, next(model.parameters()).dtype)
            hits.index_add_(0, y, (model(x).argmax(-1).cpu() == y).double())
    return hits / torch.bincount(data.test_y, minlength=data.num_classes).clamp_min(1)


@checked
def reestimate(federation: Federation, state: State | None = None, batch_size: Many | None = 512) -> State:
    """A state whose running statistics are estimated anew from all clients' training data, pooled and shuffled.

    Weights stay as they are. Each layer gets the mean over the batches of their means and (unbiased) variances. A
    federation would need 2 exchanges per layer and batch for it, or a public sample without labels.

    Args:
        state: the global model by default.
        batch_size: examples per forward pass; None takes all at once, which gives the statistics of the whole data.
    """
    model = in_training(federation, federation.state if state is None else state)
    x = torch.cat([x for x, _ in fixed_batches(federation, None)])
    order = torch.randperm(len(x), generator=generator(federation.settings.seed, "re-estimation"))
    # a last batch of a single image may have no variance
    estimate_anew(model, [x[batch] for batch in order.split(batch_size or len(x)) if len(batch) > 1])
    return get_state(model)


@checked
def estimate_anew(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the batch norms of a model the means over some batches of their means and (unbiased) variances, in place.

    The batch norms are left in training mode; all else is in the mode that it is in.

    Args:
        batches: inputs as the model reads them.
    """
    layers = list(batch_norms(model).values())
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    with torch.no_grad(), single_threaded():
        for batch in batches:
            model(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@checked
def fixbn(federation: Federation, rounds: Many, switch: int, lr: float) -> Federation:
    """FixBN (Zhong, Chen and Chao, arXiv 2303.06530): `switch` rounds of FedAvg with BN, then frozen running
    statistics.

    Frozen statistics take away the scale invariance that tamed the learning rate, so it has to be lowered at the
    switch.

    Args:
        federation: a run with batch_norm="average"; it is run up to `switch` if it has not been.
        rounds: rounds in all.
        switch: the last round of the first stage; the paper's own was not at hand, half of the rounds is a common
            choice.
        lr: learning rate of the second stage.
    """
    if not 0 <= switch < rounds:
        raise ValueError(f"switch={switch}, accepted: 0 to {rounds - 1}, one less than the rounds")
    federation.run(max(0, switch - federation.round))
    return federation.fork("FixBN", at=switch, batch_norm="frozen", lr=lr).run(rounds - switch)

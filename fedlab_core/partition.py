"""Who holds what: ways to deal n training examples to clients, each drawn from an explicit generator."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core import check
from fedlab_core.data import arguments
from fedlab_core.data.feature_skew import FeatureSkew, SkewKind
from fedlab_core.data.shares import dirichlet_rows, raised_to

_TRIES = 10  # Dirichlet draws before the smallest clients are topped up by hand


@dataclass(frozen=True, eq=False)
class Partition:
    """Examples by client in compressed rows: client k holds `indices[offsets[k]:offsets[k + 1]]`.

    Args:
        indices: int64 (total,), positions in the training set; whole numbers in a list or NumPy array become a tensor.
        offsets: int64 (clients + 1,), from 0 to total; likewise.
        description: how it was made, such as "dirichlet(alpha=0.3), 20 clients". If examples are held more than once,
            their number is added to it.
        transform: what each client does to its images before using them; None for nothing.

    Raises:
        ValueError: indices that are negative or no whole numbers, offsets that do not rise from 0 to their number, or a
            transform for another number of clients.
    """

    indices: Tensor
    offsets: Tensor
    description: str
    transform: FeatureSkew | None = None

    def __post_init__(self) -> None:
        for name in ("indices", "offsets"):
            object.__setattr__(self, name, arguments.whole_numbers(name, getattr(self, name)))
        indices, o = self.indices, self.offsets
        if len(o) < 2 or o[0] != 0 or o[-1] != len(indices) or bool((o.diff() < 0).any()):
            found = f"{o[:5].tolist()}{' ...' if len(o) > 5 else ''}"
            raise ValueError(f"offsets={found}: expected to rise from 0 to the number of indices, {len(indices)}")
        if len(indices) and int(indices.min()) < 0:
            place = int((indices < 0).nonzero()[0])
            raise ValueError(f"indices[{place}]={int(indices[place])}, accepted: positions in the training set, from 0")
        check.text("description", self.description)
        if self.transform is not None:
            parameters = check.instance("transform", self.transform, FeatureSkew).parameters
            if (clients := len(parameters)) != len(self):
                raise ValueError(f"transform is for {clients} clients, accepted: for {len(self)}, as many as here")
        if (repeated := self.repeated) and "held more than once" not in self.description:
            said = f"{repeated} example{'s' * (repeated > 1)} held more than once"
            object.__setattr__(self, "description", ", ".join(filter(None, (self.description, said))))

    @property
    def repeated(self) -> int:
        """How many examples are held more than once, by one client or by several."""
        ordered = self.indices.sort().values
        return len(ordered[1:][ordered[1:] == ordered[:-1]].unique())

    def check(self, n: int) -> None:
        """Compare the indices with the number of training examples.

        Raises:
            ValueError: a client holds an example that does not exist.
        """
        n = check.whole("n", n, 1)
        if len(self.indices) and int(self.indices.max()) >= n:
            place = int((self.indices >= n).nonzero()[0])
            client, index = int(torch.searchsorted(self.offsets, place, right=True)) - 1, int(self.indices[place])
            raise ValueError(f"indices: client {client} holds example {index}, accepted: 0 to {n - 1}, {n} examples")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> Tensor:
        if not 0 <= client < len(self):
            raise IndexError(f"client {client}: expected 0 to {len(self) - 1}")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self)))

    @property
    def sizes(self) -> Tensor:
        """Examples per client, int64 (clients,)."""
        return self.offsets.diff()

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of who holds what and of the transform (not of the description)."""
        digest = hashlib.sha256(self.offsets.numpy().tobytes() + self.indices.numpy().tobytes())
        if self.transform is not None:
            digest.update(f"{self.transform.kind} {self.transform.seed}".encode())
            digest.update(self.transform.parameters.numpy().tobytes())
        return digest.hexdigest()[:16]


def iid(n: int, clients: int, generator: torch.Generator) -> Partition:
    """Shuffle n examples and cut them into `clients` parts whose sizes differ by at most one.

    Raises:
        ValueError: more clients than examples.
    """
    arguments.check_generator(generator)
    n, clients = arguments.check_clients(n, clients)
    return Partition(torch.randperm(n, generator=generator), _even_cuts(n, clients), _describe("iid", clients))


def shards(labels: Tensor, clients: int, per_client: int, generator: torch.Generator) -> Partition:
    """The pathological split of McMahan et al. 2017, section 3: sort by label, cut into shards, deal them out.

    There are `clients * per_client` shards whose sizes differ by at most one, so nothing is left over and client sizes
    differ by at most `per_client`. Ties in the sort are shuffled. With two shards most clients see two labels.

    Raises:
        ValueError: fewer examples than shards; labels not one-dimensional.
    """
    labels = arguments.labels_of(labels)
    per_client = check.whole("per_client", per_client)
    if per_client < 1:
        raise ValueError(f"per_client={per_client}: expected 1 or more")
    arguments.check_generator(generator)
    n, clients = arguments.check_clients(len(labels), clients, per_client, "per_client")
    count = clients * per_client
    order = torch.randperm(n, generator=generator)
    order = order[labels[order].argsort(stable=True)]
    holder = torch.empty(count, dtype=torch.int64)  # the client of each shard
    holder[torch.randperm(count, generator=generator)] = torch.arange(count) // per_client
    owner = holder.repeat_interleave(_even_cuts(n, count).diff())
    return _by_owner(order, owner, clients, _describe(f"shards({per_client} per client)", clients))


def dirichlet(labels: Tensor, clients: int, alpha: float, generator: torch.Generator, min_size: int = 1) -> Partition:
    """Label skew: deal each class to the clients in proportions drawn from a symmetric Dirichlet(alpha).

    The per-class recipe in general use (Yurochkin et al. 2019, arXiv 1905.12022), usually quoted with Hsu et al. 2019
    (arXiv 1909.06335), who draw a mix of classes for each of several equally large clients instead. Client sizes vary.

    If a client falls short of `min_size` the proportions are drawn again, up to 10 times in all. If the last draw still
    falls short, it is repaired without further randomness: the missing examples are taken from the largest clients
    (levelling them down evenly) and given to the small ones in order. The description says how many were moved.

    Args:
        labels: int64 (n,).
        clients: number of clients.
        alpha: concentration, > 0; small = few classes per client, large = IID in the limit.
        generator: source of every draw.
        min_size: least number of examples of a client, 0 or more.

    Raises:
        ValueError: alpha not positive and finite; min_size * clients > n; labels not one-dimensional.
    """
    labels = arguments.labels_of(labels)
    arguments.check_generator(generator)
    n, clients = arguments.check_clients(len(labels), clients, min_size)
    alpha = check.number("alpha", alpha)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha={alpha}: expected a positive, finite number")
    order = torch.randperm(n, generator=generator)
    classes, group = labels[order].unique(return_inverse=True)
    arguments.check_cells(clients, len(classes))
    order = order[group.argsort(stable=True)]
    per_class = group.bincount(minlength=len(classes))
    for _ in range(_TRIES):
        share = dirichlet_rows(alpha, len(classes), clients, generator)
        cuts = (share.cumsum(1) * per_class[:, None]).round().long()
        cuts[:, -1] = per_class
        counts = cuts.diff(dim=1, prepend=cuts.new_zeros(len(classes), 1))
        if bool((counts.sum(0) >= min_size).all()):
            break
    owner = torch.arange(clients).repeat(len(classes)).repeat_interleave(counts.flatten())
    sizes = counts.sum(0)
    target = raised_to(sizes, min_size)
    text = f"dirichlet(alpha={alpha:g})"
    if moved := int((target - sizes).clamp(min=0).sum()):
        shuffle = torch.randperm(n, generator=generator)  # so that a client gives away a sample of what it holds
        order, owner = order[shuffle], owner[shuffle]
        by_owner = owner.argsort(stable=True)
        rank = torch.arange(n) - (sizes.cumsum(0) - sizes)[owner[by_owner]]
        leaving = by_owner[rank >= target[owner[by_owner]]]
        owner[leaving] = torch.arange(clients).repeat_interleave((target - sizes).clamp(min=0))
        text += f" with {moved} examples moved for min_size={min_size}"
    return _by_owner(order, owner, clients, _describe(text, clients))


def quantity(n: int, clients: int, generator: torch.Generator, sigma: float = 1.0, min_size: int = 1) -> Partition:
    """Quantity skew: log-normal client sizes, labels IID.

    Sizes are proportional to exp(sigma * z), z ~ N(0, 1), rounded to add up to n; clients below `min_size` are raised
    to it at the cost of the largest. sigma = 0 gives equal sizes.

    Raises:
        ValueError: sigma negative or not finite; min_size * clients > n.
    """
    arguments.check_generator(generator)
    n, clients = arguments.check_clients(n, clients, min_size)
    sigma = check.number("sigma", sigma)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma}: expected a finite number, 0 or more")
    share = (sigma * torch.randn(clients, generator=generator, dtype=torch.float64)).softmax(0)
    cuts = (share.cumsum(0) * n).round().long()
    cuts[-1] = n
    sizes = raised_to(cuts.diff(prepend=cuts.new_zeros(1)), min_size)
    indices = torch.randperm(n, generator=generator)
    return Partition(indices, _offsets(sizes), _describe(f"quantity(sigma={sigma:g})", clients))


def natural(groups: Tensor | None, min_size: int = 1) -> Partition:
    """One client per natural group (writer, speaking role, topic), in the order of the group numbers.

    Exact with min_size=1. A larger `min_size` leaves out the groups with fewer examples, and the description says how
    many. The group of client k is `groups[partition[k][0]]`.

    Args:
        groups: int64 (n,), the group of each example.
        min_size: least number of examples of a client.

    Raises:
        ValueError: no groups; min_size above the largest group.
    """
    if groups is None:
        raise ValueError("groups=None: this data set has no natural clients; choose another partition")
    groups = arguments.labels_of(groups, "groups")
    min_size, n = check.whole("min_size", min_size, 1, check.LARGEST), len(groups)
    _, owner, sizes = groups.unique(return_inverse=True, return_counts=True)
    keep = sizes >= min_size
    clients, dropped = int(keep.sum()), int((~keep).sum())
    if not clients:
        raise ValueError(f"min_size={min_size}: the largest group has {int(sizes.max())} examples, so at most that")
    kept = torch.arange(n)[keep[owner]]
    text = "natural" if not dropped else f"natural(min_size={min_size}, {dropped} groups left out)"
    return _by_owner(kept, (keep.cumsum(0) - 1)[owner[kept]], clients, _describe(text, clients))


def pooled(n: int) -> Partition:
    """One client with all n examples: the centralised reference."""
    n, _ = arguments.check_clients(n, 1)
    return Partition(torch.arange(n), torch.tensor([0, n]), _describe("pooled", 1))


@check.checked
def with_feature_skew(partition: Partition, kind: SkewKind, strength: float, generator: torch.Generator) -> Partition:
    """A copy of the partition whose clients also see their images differently (feature skew).

    Args:
        partition: who holds what; a transform it already has is replaced.
        kind: what differs between clients.
        strength: see `FeatureSkew.drawn`, also for what is raised.
        generator: source of every draw.
    """
    skew = FeatureSkew.drawn(kind, strength, len(partition), generator)
    return replace(partition, transform=skew, description=f"{partition.description}, {kind}({strength:g})")


@check.checked
def label_counts(partition: Partition, labels: Tensor, num_classes: int) -> Tensor:
    """Examples of each class on each client, int64 (clients, num_classes).

    Args:
        partition: who holds what.
        labels: int64 (n,), values 0 to num_classes - 1.
        num_classes: number of columns.

    Raises:
        ValueError: labels not one-dimensional, or outside 0 to num_classes - 1.
    """
    labels, num_classes = arguments.labels_of(labels), check.whole("num_classes", num_classes, 1, check.LARGEST)
    partition.check(len(labels))
    arguments.check_cells(len(partition), num_classes)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels: from {int(labels.min())} to {int(labels.max())}, expected 0 to {num_classes - 1}")
    client = torch.arange(len(partition)).repeat_interleave(partition.sizes)
    cells = client * num_classes + labels[partition.indices]
    return cells.bincount(minlength=len(partition) * num_classes).view(len(partition), num_classes)


def _describe(how: str, clients: int) -> str:
    return f"{how}, {clients} client{'s' if clients > 1 else ''}"


def _even_cuts(n: int, parts: int) -> Tensor:
    return torch.arange(parts + 1) * n // parts


def _offsets(sizes: Tensor) -> Tensor:
    return F.pad(sizes.cumsum(0), (1, 0))


def _by_owner(examples: Tensor, owner: Tensor, clients: int, description: str) -> Partition:
    order = owner.argsort(stable=True)
    return Partition(examples[order], _offsets(owner.bincount(minlength=clients)), description)

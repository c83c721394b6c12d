"""The ideas: modules from tokens (B, L + 1, N, D) of all levels to logits (B, C). None changes what the trunk computes.

Each is our own short form of what its source describes, without the source's recipe. Letters as in layers/base.py; r is
the width of a state, C the number of classes, n = L + 1.

    readout         memtok's: statistics of all levels, standardised, and a linear head
    side            memtok's side stream of width 16, and its head
    side, principal the same; it first takes up the patches along their principal directions (2509.04398)
    pooling         8 queries over the last level's patches, each with its share of the values (2506.10178)
    levels          attention of one query over class token and mean patch of every level (ALF, 2601.09322)
    last            a state of width 16 per token, attention among all tokens at every level (LAST, 2402.04009)
    losa            low-rank mixing of channels and of tokens beside every level (LoSA, 2402.02887)
    vqt             4 queries in every layer attend to that layer's tokens; the head reads all (VQT, 2212.03220)
    synqt           the same, made from the class token and what the layer before gave (after SynQT, 2407.06964)
    class tokens    1 or 4 class tokens that pass through all layers, as tasks of memtok have them
    class + side    one class token, whose keys and values a side stream corrects
    earlier         a head on the state of a side stream that was trained on other data (a task that extends another)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtok import levels
from memtok.backbone import Backbone
from memtok.parts import DEFAULT_CHOICES
from memtok.parts.readout import FEATURES_AT_RATE_ONE
from memtok.parts.side import HEAD_STD, MIX_STD, READ, WIDER, states_read
from memtok.training.measure import LEAST_SPREAD

WIDTH = 16  # of states, and the rank of everything of low rank
QUERIES = 8
STATISTICS = DEFAULT_CHOICES["statistics"].split("+")


@dataclass(frozen=True)
class Given:
    """What a form is made from.

    tokens: (n images, L + 1, N, D) of the training images. seed: of all draws. earlier: a form trained on other data.
    """

    backbone: Backbone
    classes: int
    tokens: Tensor
    seed: int
    earlier: nn.Module | None = None

    def drawn(self, *shape: int, std: float) -> nn.Parameter:
        """A parameter from N(0, std^2)."""
        generator = torch.Generator().manual_seed(self.seed + math.prod(shape))
        return nn.Parameter(torch.randn(shape, generator=generator) * std)

    def linear(self, inputs: int, outputs: int | None = None, std: float = HEAD_STD) -> nn.Linear:
        """A layer from `inputs` numbers to the classes."""
        layer = nn.Linear(inputs, self.classes if outputs is None else outputs)
        layer.weight = self.drawn(*layer.weight.shape, std=std)
        nn.init.zeros_(layer.bias)
        return layer


class Form(nn.Module):
    """times: the rate of its parameters as a multiple of that of the run."""

    times = 1.0

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.trunk = (given.backbone,)  # in a tuple, or its parameters would be the form's

    @property
    def backbone(self) -> Backbone:
        """The trunk, which stays as it is."""
        return self.trunk[0]

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, C) of float32 tokens (B, L + 1, N, D)."""
        raise NotImplementedError

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """All parameters, and the multiples of their rates."""
        return [(list(self.parameters()), self.times)]


def statistics(backbone: Backbone, tokens: Tensor) -> dict[str, Tensor]:
    """What memtok's parts read, by name."""
    normed, count = levels.normalised(tokens), tokens.shape[1]

    def read(name: str, numbers: Iterable[int]) -> Tensor:
        known = partial(levels.statistic, name, class_token=True, prefix_tokens=backbone.prefix_tokens)
        return torch.stack([known(normed[:, level], grid=backbone.grid) for level in numbers], dim=1)

    found = {name: read(name, range(count)) for name in STATISTICS}
    return found | {levels.PATCHES: read(levels.PATCHES, levels.patch_levels(count - 1))}


class Readout(Form):
    """The default statistics of all levels, standardised by the training images. dropout: of what is read."""

    def __init__(self, given: Given, dropout: float = 0.0) -> None:
        super().__init__(given)
        self.dropout = dropout
        features = torch.cat([self.read(some.float()) for some in torch.split(given.tokens, 100)])
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("spread", features.std(dim=0).clamp(min=LEAST_SPREAD))
        self.head = given.linear(features.shape[1], std=0.0)
        self.times = FEATURES_AT_RATE_ONE / features.shape[1]

    def read(self, tokens: Tensor) -> Tensor:
        found = statistics(self.backbone, tokens)
        return torch.cat([found[name] for name in STATISTICS], dim=2).flatten(1)

    def logits(self, tokens: Tensor) -> Tensor:
        features = (self.read(tokens) - self.get_buffer("mean")) / self.get_buffer("spread")
        found: Tensor = self.head(F.dropout(features, self.dropout, self.training))
        return found


class Side(Form):
    """memtok's side stream. principal: what it takes up begins along the principal directions of the patches."""

    times = 0.3

    def __init__(self, given: Given, principal: bool = False) -> None:
        super().__init__(given)
        dim = given.backbone.dim
        count, hidden = len(levels.patch_levels(given.backbone.depth)), WIDER * WIDTH
        self.values = nn.ParameterDict(
            {
                "patches": given.drawn(count, 1, WIDTH, dim, std=dim**-0.5),
                "token": given.drawn(count, 1, WIDTH, dim, std=dim**-0.5),
                "bias": nn.Parameter(torch.zeros(count, 1, WIDTH)),
                "mix": given.drawn(count, 1, WIDTH, 3, 3, std=MIX_STD),
                "up": given.drawn(count, 1, hidden, WIDTH, std=WIDTH**-0.5),
                "down": given.drawn(count, 1, WIDTH, hidden, std=0.5 * hidden**-0.5),
            }
        )
        if principal:
            patches = statistics(given.backbone, given.tokens[:200].float())[levels.PATCHES]
            for level in range(count):
                self.values["patches"].data[level, 0] = directions(patches[:, level].flatten(0, 2))
        self.head = given.linear(READ * WIDTH)

    def state(self, tokens: Tensor) -> Tensor:
        """(B, 17 r) what its head reads."""
        return states_read(dict(self.values.items()), statistics(self.backbone, tokens))[0].flatten(1)

    def logits(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.state(tokens))
        return found


class Earlier(Form):
    """A head on the state of an earlier task's side stream, which stays as it is; standardised as a readout is."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        assert isinstance(given.earlier, Side)
        self.earlier = (given.earlier,)  # as the trunk
        with torch.no_grad():
            read = torch.cat([given.earlier.state(some.float()) for some in torch.split(given.tokens, 100)])
        self.register_buffer("mean", read.mean(dim=0))
        self.register_buffer("spread", read.std(dim=0).clamp(min=LEAST_SPREAD))
        self.head = given.linear(read.shape[1], std=0.0)
        self.times = FEATURES_AT_RATE_ONE / read.shape[1]

    def logits(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            read = (self.earlier[0].state(tokens) - self.get_buffer("mean")) / self.get_buffer("spread")
        found: Tensor = self.head(read)
        return found


def directions(rows: Tensor) -> Tensor:
    """(r, D) the r principal directions of rows (n, D), scaled so that the rows spread by 1 along each."""
    centred = rows - rows.mean(dim=0)
    _, values, vectors = torch.linalg.svd(centred[:2000], full_matrices=False)
    spread = values[:WIDTH, None] / math.sqrt(min(len(rows), 2000))
    found: Tensor = vectors[:WIDTH] / spread
    return found


class Pooling(Form):
    """Attention of several queries over the patches of the last level; query k pools its share of the values."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.first, dim = given.backbone.prefix_tokens, given.backbone.dim
        self.query = given.drawn(QUERIES, dim, std=dim**-0.5)
        self.value = given.drawn(dim, dim, std=dim**-0.5)
        self.head = given.linear(dim)

    def logits(self, tokens: Tensor) -> Tensor:
        patches = levels.normalised(tokens[:, -1, self.first :])
        weights = (patches @ self.query.T).softmax(dim=1)  # (B, P, queries)
        shares = (patches @ self.value).reshape(*patches.shape[:2], QUERIES, -1)
        found: Tensor = self.head(torch.einsum("bpq,bpqd->bqd", weights, shares).flatten(1))
        return found


class Levels(Form):
    """Attention of one query, in as many heads as the trunk's, over class token and mean patch of every level."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.first, dim = given.backbone.prefix_tokens, given.backbone.dim
        self.query = given.drawn(dim, std=1.0)
        self.key, self.value = (given.drawn(dim, dim, std=dim**-0.5) for _ in range(2))
        self.head = given.linear(dim)

    def logits(self, tokens: Tensor) -> Tensor:
        normed = levels.normalised(tokens)
        read = torch.cat([normed[:, :, 0], normed[:, :, self.first :].mean(dim=2)], dim=1)  # (B, 2 n, D)
        heads = self.backbone.heads
        key, value = ((read @ matrix).reshape(*read.shape[:2], heads, -1) for matrix in (self.key, self.value))
        query = self.query.reshape(heads, -1)
        weights = (torch.einsum("bnhd,hd->bnh", key, query) / math.sqrt(query.shape[1])).softmax(dim=1)
        found: Tensor = self.head(torch.einsum("bnh,bnhd->bhd", weights, value).flatten(1))
        return found


class Last(Form):
    """A state of r numbers per token: at every level it takes up the tokens and attends over all of them."""

    times = 0.3

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        count, dim = given.backbone.depth + 1, given.backbone.dim
        self.takes = given.drawn(count, WIDTH, dim, std=dim**-0.5)
        self.mixes = given.drawn(count, 4, WIDTH, WIDTH, std=WIDTH**-0.5)  # query, key, value, output
        self.head = given.linear(2 * WIDTH)

    def logits(self, tokens: Tensor) -> Tensor:
        state = tokens.new_zeros(())
        for level, normed in enumerate(levels.normalised(tokens).unbind(dim=1)):
            state = state + normed @ self.takes[level].T  # (B, N, r)
            query, key, value, output = self.mixes[level]
            rows = F.layer_norm(state, (WIDTH,))
            mixed = F.scaled_dot_product_attention(rows @ query.T, rows @ key.T, rows @ value.T)
            state = state + mixed @ output.T
        state = F.layer_norm(state, (WIDTH,))
        found: Tensor = self.head(torch.cat([state[:, 0], state[:, 1:].mean(dim=1)], dim=1))
        return found


class Losa(Form):
    """Beside every level, y = x + y before, with a low-rank MLP over channels and one over tokens added."""

    times = 0.3

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        count, dim, tokens = given.backbone.depth + 1, given.backbone.dim, given.backbone.tokens
        self.down = given.drawn(count, WIDTH, dim, std=dim**-0.5)
        self.up = given.drawn(count, dim, WIDTH, std=0.1 * WIDTH**-0.5)
        self.tokens_down = given.drawn(count, WIDTH // 2, tokens, std=tokens**-0.5)
        self.tokens_up = given.drawn(count, tokens, WIDTH // 2, std=0.1 * (WIDTH // 2) ** -0.5)
        self.head = given.linear(dim)

    def logits(self, tokens: Tensor) -> Tensor:
        state = tokens.new_zeros(())
        for level, normed in enumerate(levels.normalised(tokens).unbind(dim=1)):
            state = levels.normalised(normed + state)
            state = state + F.gelu(state @ self.down[level].T) @ self.up[level].T
            state = state + self.tokens_up[level] @ F.gelu(self.tokens_down[level] @ state)
        found: Tensor = self.head(levels.normalised(state).mean(dim=1))
        return found


class Queries(Form):
    """Own tokens that attend to those of the trunk in every layer, with the layer's own frozen weights.

    count: how many. carried: they pass from layer to layer, and the head reads the last; else each layer has its own,
    and the head reads their mean in every layer. made: those of a layer are made from the trunk's class token and what
    the layer before gave, in low rank. corrected: a side stream is added to the tokens that they attend to.
    """

    def __init__(
        self, given: Given, count: int, *, carried: bool = False, made: bool = False, corrected: bool = False
    ) -> None:
        super().__init__(given)
        self.carried = carried
        depth, dim = given.backbone.depth, given.backbone.dim
        token = given.backbone.class_token
        assert token is not None
        self.start = given.drawn(1 if carried else depth, count, dim, std=HEAD_STD)
        self.start.data += given.backbone.enter_class_tokens(token)
        self.made = given.drawn(depth, 2, WIDTH, dim, std=dim**-0.5) if made else None
        self.making = given.drawn(depth, dim, WIDTH, std=0.1 * WIDTH**-0.5) if made else None
        self.takes = given.drawn(depth, WIDTH, dim, std=dim**-0.5) if corrected else None
        self.corrects = nn.Parameter(torch.zeros(depth, dim, WIDTH)) if corrected else None
        self.head = given.linear(dim * (count if carried else depth))

    def logits(self, tokens: Tensor) -> Tensor:
        batch = len(tokens)
        own = self.start[0].expand(batch, -1, -1)
        state, gave = tokens.new_zeros(()), []
        for index, layer in enumerate(self.backbone.layers):
            trunk = tokens[:, index]
            if not self.carried:
                before = own.mean(dim=1, keepdim=True)
                own = self.start[index].expand(batch, -1, -1)
                if self.made is not None and self.making is not None:
                    of_class, of_before = self.made[index]
                    hidden = levels.normalised(trunk[:, :1]) @ of_class.T + levels.normalised(before) @ of_before.T
                    own = own + F.gelu(hidden) @ self.making[index].T
            if self.takes is not None and self.corrects is not None:
                state = state + levels.normalised(trunk) @ self.takes[index].T
                trunk = trunk + F.layer_norm(state, (WIDTH,)) @ self.corrects[index].T
            normed = layer.normed(own)
            query, own_key, own_value = layer.queries_keys_values(normed)
            key, value = layer.keys_and_values(layer.normed(trunk))
            if self.carried:
                key, value = torch.cat([key, own_key], dim=2), torch.cat([value, own_value], dim=2)
            heads = F.scaled_dot_product_attention(query, key, value, scale=layer.scale)
            own = layer.add_mlp(layer.add_attention(own, heads, normed))
            gave.append(levels.normalised(own).mean(dim=1))
        read = self.backbone.final_norm(own).flatten(1) if self.carried else torch.cat(gave, dim=1)
        found: Tensor = self.head(read)
        return found


class Sum(Form):
    """Several forms whose logits are added, each with its own rate."""

    def __init__(self, given: Given, forms: Sequence[Form]) -> None:
        super().__init__(given)
        self.forms = nn.ModuleList(forms)

    def logits(self, tokens: Tensor) -> Tensor:
        return torch.stack([form.logits(tokens) for form in self.forms if isinstance(form, Form)]).sum(dim=0)

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [group for form in self.forms if isinstance(form, Form) for group in form.groups()]


Make = Callable[[Given], Form]

ALONE: dict[str, Make] = {
    "readout": Readout,
    "side": Side,
    "side, principal": lambda given: Side(given, principal=True),
    "pooling": Pooling,
    "levels": Levels,
    "last": Last,
    "losa": Losa,
    "vqt": lambda given: Queries(given, 4),
    "synqt": lambda given: Queries(given, 4, made=True),
    "1 class token": lambda given: Queries(given, 1, carried=True),
    "4 class tokens": lambda given: Queries(given, 4, carried=True),
    "class + side": lambda given: Queries(given, 1, carried=True, corrected=True),
}


def beside_readout(make: Make) -> Make:
    """The same form beside memtok's readout."""
    return lambda given: Sum(given, [Readout(given), make(given)])


EARLIER: dict[str, Make] = {"earlier": Earlier, "readout + earlier": beside_readout(Earlier)}

FORMS: dict[str, Make] = {
    **ALONE,
    "readout, dropout 0.5": lambda given: Readout(given, dropout=0.5),
    **{f"readout + {name}": beside_readout(make) for name, make in ALONE.items() if name != "readout"},
}

"""The Decision Transformer (Chen et al. 2021): model, loss, and acting with cached keys and values.

A step is one to four tokens, return-to-go, goal, body and action, each a linear map of its numbers plus a vector for the time
in the episode. The action is read off the body's token. As the goal is a token at every step, what is asked for may
change at any of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

RETURN, GOAL, BODY, ACTION = "return", "goal", "body", "action"
TARGET = "target"  # the action to be learned; the token is of the one that was done


@dataclass(frozen=True)
class Sizes:
    """What a model is made of."""

    body: int  # numbers that show the body
    goal: tuple[int, ...]  # numbers of each part of the goal; empty: no goal token
    action: int
    has_return: bool  # whether there is a token of the return-to-go
    context: int  # steps that it sees
    max_time: int  # steps of the longest episode
    layers: int = 3
    heads: int = 1
    width: int = 128
    dropout: float = 0.1
    bins: int = 0  # of each action; 0: its mean
    has_action: bool = True  # whether there is a token of what was done

    @property
    def tokens(self) -> tuple[str, ...]:
        """Of a step, in order."""
        first = [*([RETURN] if self.has_return else []), *([GOAL] if self.goal else [])]
        return (*first, BODY, *([ACTION] if self.has_action else []))


class Dropout(nn.Module):
    """nn.Dropout, several times as fast on a CPU: four entries share a draw of 64 bits; the share is `p` to 1 in 65,536."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self._dropped = p, round(p * 2**16)

    def forward(self, x: Tensor) -> Tensor:
        """Entries are zero with chance p, the others larger by as much, while training."""
        if not self.training or self._dropped == 0:
            return x
        return functional.dropout(x, self.p) if x.device.type != "cpu" else x * self._factors(x)

    def onto(self, shortcut: Tensor, x: Tensor) -> Tensor:
        """`shortcut` + self(x)."""
        if not self.training or self._dropped == 0 or x.device.type != "cpu":
            return shortcut + self(x)
        return cast(Tensor, _AddDropped.apply(shortcut, x, self._factors(x)))

    def _factors(self, x: Tensor) -> Tensor:
        """0 with chance p, else what makes up for it."""
        lanes = random_words((x.numel() + 3) // 4).view(torch.int16)[: x.numel()].view(x.shape)
        kept = torch.ge(lanes, self._dropped - 2**15, out=torch.empty_like(x, memory_format=torch.contiguous_format))
        return kept.mul_(1 / (1 - self._dropped / 2**16))


GOLDEN, MIX_1, MIX_2 = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def random_words(count: int) -> Tensor:
    """`count` words of 64 random bits, from a start that torch's generator draws, which alone is slower.

    Nearly splitmix64: two of its shifts carry the sign along.
    """
    start = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    words = torch.arange(count).mul_(GOLDEN).add_(start)
    shifted = words >> 30
    words.bitwise_xor_(shifted).mul_(MIX_1)
    words.bitwise_xor_(torch.bitwise_right_shift(words, 27, out=shifted)).mul_(MIX_2)
    return words.bitwise_xor_(torch.bitwise_right_shift(words, 31, out=shifted).bitwise_and_(2**33 - 1))


class _AddDropped(torch.autograd.Function):
    """shortcut + x * factors, in one pass each way."""

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, x: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return torch.addcmul(shortcut, x, factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (factors,) = ctx.saved_tensors
        return gradient, gradient * factors, None


class _TwoLayers(torch.autograd.Function):
    """gelu(x @ up.T + up_bias) @ down.T + down_bias of rows (n, width), in place wherever autograd would copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
        before = (x @ up.t()).add_(up_bias)  # `addmm` would copy the bias into fresh memory first
        hidden = functional.gelu(before)
        ctx.save_for_backward(x, up, before, hidden, down)
        return (hidden @ down.t()).add_(down_bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, up, before, hidden, down = ctx.saved_tensors
        to_hidden = gradient @ down
        torch.ops.aten.gelu_backward.grad_input(to_hidden, before, grad_input=to_hidden)
        of_down, of_up = gradient.t() @ hidden, to_hidden.t() @ x
        return to_hidden @ up, of_up, to_hidden.sum(dim=0), of_down, gradient.sum(dim=0)


class Block(nn.Module):
    """Attention and a two-layer network, each after a layer norm and round a shortcut (GPT-2's order)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop, self.drop_seen = Dropout(sizes.dropout), Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        q, k, v = (self._heads(part) for part in self.to_qkv(self.norm_1(x)).chunk(3, dim=2))
        return self._rest(x, self._attend(q, k, v))

    def forward_some(self, x: Tensor, first: int, every: int) -> Tensor:
        """What becomes of the tokens first, first + every, ... alone: for the last block, whose others nobody asks for."""
        normed, width = self.norm_1(x), x.shape[2]
        weight, bias = self.to_qkv.weight, self.to_qkv.bias
        asking = slice(first, None, every)
        q = self._heads(functional.linear(normed[:, asking], weight[:width], bias[:width]))
        k, v = (self._heads(part) for part in functional.linear(normed, weight[width:], bias[width:]).chunk(2, dim=2))
        places = torch.arange(x.shape[1], device=x.device)
        return self._rest(x[:, asking], self._attend(q, k, v, places <= places[asking, None]))

    def extend(self, x: Tensor, cache: Cache, layer: int) -> Tensor:
        """Tokens (batch, tokens, width) that follow those in the cache -> the same."""
        q, k, v = (self._heads(part) for part in self.to_qkv(self.norm_1(x)).chunk(3, dim=2))
        k, v = cache.append(layer, k, v)
        return self._rest(x, functional.scaled_dot_product_attention(q, k, v, attn_mask=cache.mask(x.shape[1])))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each of `q` sees, where `mask` (queries, keys) is true, of (batch, heads, tokens, head width); null: causal.

        On a CPU torch has no fused attention with dropout; written out, its dropout is ours.
        """
        dropout = self.drop_seen.p if self.training else 0.0
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # its way back takes five times as long in halves
            with torch.autocast("cpu", enabled=False):
                return self._attend(q.float(), k.float(), v.float(), mask)
        if q.device.type != "cpu" or not dropout:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)
        if mask is None:
            mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        hidden = torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
        q, k, v_flat = (part.flatten(0, 1) for part in (q, k, v))
        scores = torch.add(hidden, torch.bmm(q, k.transpose(1, 2)), alpha=1 / math.sqrt(q.shape[2]))
        return torch.bmm(self.drop_seen(scores.softmax(dim=2)), v_flat).unflatten(0, v.shape[:2])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _rest(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.drop.onto(x, self.to_out(seen.transpose(1, 2).flatten(2)))
        return self.drop.onto(x, self._two_layers(self.norm_2(x)))

    def _two_layers(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            rows = _TwoLayers.apply(x.flatten(0, 1), self.up.weight, self.up.bias, self.down.weight, self.down.bias)
            return cast(Tensor, rows).view(x.shape)
        return cast(Tensor, self.down(functional.gelu(self.up(x))))


class Cache:
    """Keys and values of the tokens so far, (batch, heads, capacity, head width) a layer; row i's first `start[i]` are void."""

    def __init__(self, sizes: Sizes, batch: int, capacity: int, device: torch.device) -> None:
        shape = (batch, sizes.heads, capacity, sizes.width // sizes.heads)
        self.keys = [torch.zeros(shape, device=device) for _ in range(sizes.layers)]
        self.values = [torch.zeros(shape, device=device) for _ in range(sizes.layers)]
        self.used = 0
        self.start = torch.zeros(batch, dtype=torch.long, device=device)
        self._positions = torch.arange(capacity, device=device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps what a layer makes of new tokens; all of it with what was there."""
        end = self.used + k.shape[2]
        self.keys[layer][:, :, self.used : end], self.values[layer][:, :, self.used : end] = k, v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def mask(self, tokens: int) -> Tensor:
        """What each new token may look at, (batch, 1, tokens, used + tokens): what is not void, and nothing later.

        A void token sees itself, as softmax needs something.
        """
        end = self.used + tokens
        rows, columns = self._positions[self.used : end, None], self._positions[None, :end]
        seen = (columns <= rows) & (columns[None] >= self.start[:, None, None])
        return (seen | (rows == columns))[:, None]


class DecisionTransformer(nn.Module):
    """Returns-to-go, goals, bodies and actions -> actions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.from_return = nn.Linear(1, width) if sizes.has_return else None
        self.from_goal = nn.ModuleList(nn.Linear(size, width) for size in sizes.goal)
        # what stands for a part of the goal, or a return, that is not given
        self.absent = nn.Parameter(torch.zeros(len(sizes.goal) + 1, width))
        self.from_body = nn.Linear(sizes.body, width)
        self.from_action = nn.Linear(sizes.action, width) if sizes.has_action else None
        self.time = nn.Embedding(sizes.max_time, width)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.to_action = nn.Linear(width, sizes.action * max(sizes.bins, 1))
        self.apply(self._init)
        for name, parameter in self.named_parameters():
            if name.endswith(("to_out.weight", "down.weight")):  # so that depth does not add variance (GPT-2)
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * sizes.layers))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def embed(self, inputs: Mapping[str, Tensor], tokens: Sequence[str], last: bool = True) -> Tensor:
        """Inputs (batch, steps, size) -> their tokens, step by step, (batch, steps * len(tokens), width); without the `last`?

        `given` (batch, steps, parts + 1) says which parts of the goal, and last the return, are shown; all without it.
        """
        when = self.time(inputs["time"].clamp(max=self.sizes.max_time - 1))
        given = inputs.get("given")
        columns = []
        for token in tokens:
            if token == RETURN:
                assert self.from_return is not None
                embedded = self._shown(self.from_return(inputs[RETURN][..., None]), given, len(self.sizes.goal))
            elif token == GOAL:
                parts = inputs[GOAL].split(list(self.sizes.goal), dim=-1)
                maps = enumerate(zip(self.from_goal, parts, strict=True))
                embedded = torch.stack([self._shown(to(part), given, i) for i, (to, part) in maps]).sum(dim=0)
            elif token == BODY:
                embedded = self.from_body(inputs[BODY])
            else:
                assert self.from_action is not None
                embedded = self.from_action(inputs[ACTION])
            columns.append(embedded + when)
        stacked = torch.stack(columns, dim=2).flatten(1, 2)  # (batch, steps * tokens, width)
        return self.drop(self.norm_in(stacked if last else stacked[:, :-1]))

    def _shown(self, embedded: Tensor, given: Tensor | None, part: int) -> Tensor:
        return embedded if given is None else torch.where(given[..., part, None], embedded, self.absent[part])

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the model makes of each step's body token: actions (batch, steps, size), or logits (..., size, bins)."""
        tokens = self.sizes.tokens
        x = self.embed(inputs, tokens, last=tokens[-1] != ACTION)  # after the last action nobody asks
        blocks = cast(list[Block], list(self.blocks))
        for block in blocks[:-1]:
            x = block(x)
        return self._head(blocks[-1].forward_some(x, tokens.index(BODY), len(tokens)))

    def _head(self, x: Tensor) -> Tensor:
        answer = self.to_action(self.norm_out(x))
        if self.sizes.bins:
            return answer.unflatten(-1, (self.sizes.action, self.sizes.bins))
        return torch.tanh(answer)

    def loss(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error of actions in [-1, 1], or cross entropy of their bins, over steps that are `valid`."""
        answer, target = self(inputs)[inputs["valid"]], inputs[TARGET][inputs["valid"]]
        if not self.sizes.bins:
            return functional.mse_loss(answer, target)
        return functional.cross_entropy(answer.flatten(0, 1), self.to_bin(target).flatten())

    def to_bin(self, action: Tensor) -> Tensor:
        """The bin of each action, [-1, 1] cut evenly."""
        return ((action.clamp(-1, 1) + 1) / 2 * self.sizes.bins).long().clamp(max=self.sizes.bins - 1)

    def to_actions(self, answer: Tensor) -> Tensor:
        """Actions in [-1, 1] from the head's answer: means, or the centres of the likeliest bins."""
        if not self.sizes.bins:
            return answer
        return (answer.argmax(dim=-1) + 0.5) / self.sizes.bins * 2 - 1

    def extend(self, x: Tensor, cache: Cache) -> Tensor:
        """New tokens (batch, tokens, width) after those in the cache, which takes them in; what becomes of them."""
        for layer, block in enumerate(cast(list[Block], list(self.blocks))):
            x = block.extend(x, cache, layer)
        cache.used += x.shape[1]
        return x


class Context:
    """What a model has seen of `batch` episodes side by side, and the actions that it takes there.

    Keys and values are kept until `context` steps are full; then the newer half is read again, alone, and begins the next
    stretch. So a decision rests on between half of `context` and `context` steps, exactly as in training.
    """

    def __init__(self, model: DecisionTransformer, batch: int) -> None:
        self.model, self.sizes = model, model.sizes
        device = next(model.parameters()).device
        self._device, self._batch = device, batch
        self._history: list[dict[str, Tensor]] = []  # inputs (batch, 1, ...) of the steps in the cache, oldest first
        self._begun = torch.zeros(batch, dtype=torch.long, device=device)  # index of each episode's first step in the history
        self._new_cache()

    def _new_cache(self) -> None:
        self._cache = Cache(self.sizes, self._batch, self.sizes.context * len(self.sizes.tokens), self._device)

    def begin(self, mask: Tensor) -> None:
        """Episodes begin where `mask` (batch,) is true: what was before is not seen any more."""
        self._begun[mask] = len(self._history)
        self._cache.start[mask] = len(self._history) * len(self.sizes.tokens)

    @torch.no_grad()
    def act(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Actions (batch, size) for the present step's inputs (batch, 1, ...), without its action.

        The action that is really taken follows by `took`.
        """
        if len(self._history) == self.sizes.context:
            self._read_again()
        tokens = self.sizes.tokens
        parts = [self.model.embed(inputs, tokens[: tokens.index(BODY) + 1])]
        if self._history and self._cache.used % len(tokens):  # the last step's action token is still to come
            parts.insert(0, self.model.embed(self._history[-1], tokens[-1:]))
        x = self.model.extend(torch.cat(parts, dim=1), self._cache)
        self._history.append(dict(inputs))
        return self.model.to_actions(self.model._head(x[:, -1:]))[:, 0]

    def took(self, action: Tensor) -> None:
        """What was done at the present step, (batch, size)."""
        self._history[-1][ACTION] = action[:, None]

    def _read_again(self) -> None:
        kept = self._history[len(self._history) - self.sizes.context // 2 :]
        dropped = len(self._history) - len(kept)
        self._history = kept
        self._begun = (self._begun - dropped).clamp(min=0)
        self._new_cache()
        tokens = self.sizes.tokens
        self._cache.start = self._begun * len(tokens)
        steps = {name: torch.cat([step[name] for step in kept], dim=1) for name in kept[0]}
        self.model.extend(self.model.embed(steps, tokens), self._cache)

    def get_state(self) -> dict[str, Any]:
        """What has been seen and what the layers made of it, as arrays."""
        cache, used = self._cache, self._cache.used
        steps = [{name: tensor.cpu().numpy().copy() for name, tensor in step.items()} for step in self._history]
        keys, values = ([part[:, :, :used].cpu().numpy().copy() for part in parts] for parts in (cache.keys, cache.values))
        begun, start = (tensor.cpu().numpy().copy() for tensor in (self._begun, cache.start))
        return {"history": steps, "keys": keys, "values": values, "used": used, "begun": begun, "start": start}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where `get_state` was taken."""

        def tensor(array: Any) -> Tensor:
            return torch.from_numpy(array.copy()).to(self._device)

        self._history = [{name: tensor(array) for name, array in step.items()} for step in state["history"]]
        self._begun = tensor(state["begun"])
        self._new_cache()
        self._cache.used, self._cache.start = int(state["used"]), tensor(state["start"])
        for kept, parts in ((self._cache.keys, state["keys"]), (self._cache.values, state["values"])):
            for whole, part in zip(kept, parts, strict=True):
                whole[:, :, : self._cache.used] = tensor(part)

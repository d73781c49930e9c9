"""The Decision Transformer beside Hugging Face's and beside CORL's: tokens a second in training, decisions a second in acting.

    python bench/dt.py

Same sizes (K=20, 3 layers, 1 head, width 128, dropout 0.1), same batches of 64 windows of three tokens a step, AdamW,
gradients clipped at 0.25, in float32, GELU; ours in mixed precision, too (`precision: bfloat16`). Ours and Hugging Face's draw
the same windows from the same dataset, by our sampler; CORL's loop is written after its dt.py: windows one after the other
from episodes in memory, a DataLoader without workers, PyTorch's MultiheadAttention under a mask. Acting: 64 simulations side
by side; Hugging Face's model reads the whole context for each decision.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from flexrl.dataset import Dataset, open_dataset
from flexrl.dt import BODY, GOAL, RETURN, Context, DecisionTransformer
from flexrl.offline import DTSettings, Numbers, OfflineLearner, make_model
from flexrl.parallel import Peers
from flexrl.windows import WindowSampler

ROOT = Path(__file__).resolve().parent.parent
K, BATCH, WIDTH, LAYERS, HEADS, DROPOUT = 20, 64, 128, 3, 1, 0.1


def some_dataset(workspace: Path) -> Dataset:
    """A quarter of a million steps of the shipped walk."""
    command = [sys.executable, "collect.py", "--name", "walk", "--workspace", str(workspace), "--steps", "256_000"]
    command += ["--model", "examples/pretrained/humanoid_walk", "--set", "noise=[0.1]"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return open_dataset(workspace / "walk")


def our_learner(dataset: Dataset, precision: str) -> OfflineLearner:
    sampler = WindowSampler([dataset], [np.ones(len(dataset.episodes), bool)], [], K)
    model = make_model(DTSettings(context=K, layers=LAYERS, heads=HEADS, width=WIDTH, dropout=DROPOUT), sampler)
    return OfflineLearner(
        model,
        sampler,
        Numbers.of(sampler),
        batch_size=BATCH,
        accumulate=1,
        learning_rate=1e-4,
        num_updates=10**6,
        warmup=10_000,
        weight_decay=1e-4,
        max_grad_norm=0.25,
        hide=0.0,
        precision=precision,
        compiled=False,
        device=torch.device("cpu"),
        seed=0,
        peers=Peers(),
    )


def hugging_face_model(learner: OfflineLearner) -> nn.Module:
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    sampler = learner.sampler
    config = DecisionTransformerConfig(
        state_dim=sampler.body_size,
        act_dim=sampler.info.action_size,
        hidden_size=WIDTH,
        max_ep_len=4096,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=4 * WIDTH,
        activation_function="gelu",
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        attn_pdrop=DROPOUT,
        n_positions=1024,
    )
    return DecisionTransformerModel(config)


def hugging_face_update(learner: OfflineLearner, model: nn.Module) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    model.train()

    def update() -> None:
        inputs = learner.to_inputs(learner.sampler.draw(BATCH, rng))
        _, action, _ = model(
            states=inputs[BODY],
            actions=inputs["action"],
            rewards=None,
            returns_to_go=inputs[RETURN][..., None],
            timesteps=inputs["time"],
            attention_mask=inputs["valid"].long(),
            return_dict=False,
        )
        valid = inputs["valid"]
        loss = nn.functional.mse_loss(action[valid], inputs["action"][valid])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimiser.step()

    return update


class CorlBlock(nn.Module):
    """As CORL's dt.py builds it: MultiheadAttention under a boolean mask, a network of four times the width."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(DROPOUT))
        self.drop = nn.Dropout(DROPOUT)
        self.register_buffer("mask", ~torch.tril(torch.ones(3 * K, 3 * K)).to(bool))

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        normed, n = self.norm1(x), x.shape[1]
        attended = self.attention(
            normed, normed, normed, attn_mask=self.mask[:n, :n], key_padding_mask=padding, need_weights=False
        )[0]
        x = x + self.drop(attended)
        return x + self.mlp(self.norm2(x))


class CorlModel(nn.Module):
    """CORL's DecisionTransformer: three embeddings, interleaved."""

    def __init__(self, state: int, action: int) -> None:
        super().__init__()
        self.drop, self.norm_in, self.norm_out = nn.Dropout(DROPOUT), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.time, self.state = nn.Embedding(1000 + K, WIDTH), nn.Linear(state, WIDTH)
        self.action, self.returns = nn.Linear(action, WIDTH), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList([CorlBlock() for _ in range(LAYERS)])
        self.head = nn.Sequential(nn.Linear(WIDTH, action), nn.Tanh())

    def forward(self, states, actions, returns, times, padding):
        batch, n = states.shape[:2]
        time = self.time(times)
        parts = [self.returns(returns.unsqueeze(-1)) + time, self.state(states) + time, self.action(actions) + time]
        x = torch.stack(parts, dim=1).permute(0, 2, 1, 3).reshape(batch, 3 * n, WIDTH)
        padding = torch.stack([padding] * 3, dim=1).permute(0, 2, 1).reshape(batch, 3 * n)
        x = self.drop(self.norm_in(x))
        for block in self.blocks:
            x = block(x, padding=padding)
        return self.head(self.norm_out(x)[:, 1::3])


def corl_update(learner: OfflineLearner) -> Callable[[], None]:
    sampler, numbers = learner.sampler, learner.numbers
    dataset = sampler.datasets[0]
    columns = sampler.info.columns_of(is_goal=False)
    episodes = []
    for i in range(len(dataset.episodes)):
        steps = dataset.episode(i, ["observation", "action", "reward"])
        to_go = np.cumsum(steps["reward"][::-1])[::-1].copy()
        episodes.append((np.array(steps["observation"][:, columns]), np.array(steps["action"]), to_go))
    lengths = dataset.episodes.length
    chance = lengths / lengths.sum()

    class Windows(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                states, actions, returns = episodes[np.random.choice(len(episodes), p=chance)]
                start = np.random.randint(0, len(states) - 1)
                part = [array[start : start + K] for array in (states, actions, returns)]
                n = len(part[0])
                part[0] = (part[0] - numbers.mean) / numbers.std
                part[2] = part[2] / numbers.return_scale
                padded = [np.pad(array, [(0, K - n)] + [(0, 0)] * (array.ndim - 1)).astype(np.float32) for array in part]
                mask = np.hstack([np.ones(n), np.zeros(K - n)])
                yield (*padded, np.arange(start, start + K), mask)

    batches = iter(torch.utils.data.DataLoader(Windows(), batch_size=BATCH))
    model = CorlModel(sampler.body_size, sampler.info.action_size).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda steps: min((steps + 1) / 10_000, 1))

    def update() -> None:
        states, actions, returns, times, mask = next(batches)
        predicted = model(states, actions, returns, times, ~mask.to(torch.bool))
        loss = (nn.functional.mse_loss(predicted, actions, reduction="none") * mask.unsqueeze(-1)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimiser.step()
        schedule.step()

    return update


def rate(update: Callable[[], object], seconds: float) -> float:
    """Updates a second, after a few that do not count."""
    for _ in range(3):
        update()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        update()
        count += 1
    return count / (time.perf_counter() - begin)


def decisions(learner: OfflineLearner, peer: nn.Module, seconds: float) -> tuple[float, float]:
    """Decisions a second of both, 64 simulations: ours over 11 to 20 steps, as its context is used, the peer's over 20."""
    model = learner.model.eval()
    assert isinstance(model, DecisionTransformer)
    context = Context(model, 64)
    now = {BODY: torch.randn(64, 1, learner.sampler.body_size), GOAL: torch.zeros(64, 1, 0), RETURN: torch.ones(64, 1)}
    now["time"] = torch.zeros(64, 1, dtype=torch.long)
    action = torch.zeros(64, learner.sampler.info.action_size)

    def act() -> None:
        context.act(now)
        context.took(action)

    for _ in range(2 * K):
        act()
    ours = rate(act, seconds)
    peer.eval()
    whole = {
        "states": torch.randn(64, K, learner.sampler.body_size),
        "actions": torch.randn(64, K, learner.sampler.info.action_size),
        "rewards": None,
        "returns_to_go": torch.ones(64, K, 1),
        "timesteps": torch.arange(K).repeat(64, 1),
        "attention_mask": torch.ones(64, K, dtype=torch.long),
    }

    @torch.no_grad()
    def read_all() -> None:
        peer(**whole, return_dict=False)[1][:, -1]

    return 64 * ours, 64 * rate(read_all, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        dataset = some_dataset(Path(temporary))
        learner = our_learner(dataset, "float32")
        peer = hugging_face_model(learner)
        updates = {
            "ours": learner.improve,
            "ours in bfloat16": our_learner(dataset, "bfloat16").improve,
            "Hugging Face": hugging_face_update(learner, peer),
            "CORL": corl_update(learner),
        }
        found: dict[str, list[float]] = {name: [] for name in updates}
        acting: list[tuple[float, float]] = []
        for _ in range(arguments.repeats):
            for name, update in updates.items():
                found[name].append(rate(update, arguments.seconds) * BATCH * K * 3)
            acting.append(decisions(learner, peer, arguments.seconds / 2))
            told = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in found.items())
            print(f"tokens/s: {told}; decisions/s: ours {acting[-1][0]:,.0f}, Hugging Face {acting[-1][1]:,.0f}", flush=True)
        for name in ("Hugging Face", "CORL"):
            for who in ("ours", "ours in bfloat16"):
                ratios = [ours / its for ours, its in zip(found[who], found[name], strict=True)]
                print(f"training, {who} / {name}: {statistics.median(ratios):.2f} (median of {arguments.repeats})")
        print(f"acting, ours / Hugging Face: {statistics.median(a / b for a, b in acting):.2f} (median of {arguments.repeats})")


if __name__ == "__main__":
    main()

"""The settings of an offline training."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from flexrl.config import Settings
from flexrl.learner_settings import Schedule
from flexrl.machine import Device
from flexrl.offline import DTSettings, GoalPart, ModelSettings, Part, Share, prompt_parts
from flexrl.text_encoders import EncoderName


class EvaluationSettings(Settings):
    """Loss on held-out episodes, and episodes in the dataset's own world."""

    # updates between evaluations
    every: int = Field(2_000, ge=1)
    # batches of held-out windows
    batches: int = Field(20, ge=1, le=10_000)
    # episodes side by side in the dataset's world; 0: none, and the loss decides best/
    episodes: int = Field(0, ge=0, le=4096)
    # the first episode's seed
    seed: int = Field(1_000_000, ge=0, le=2**31)
    # v5: Gymnasium's own dynamics; same: the dataset's
    physics: Literal["v5", "same"] = "v5"


class TrainDTSettings(Settings):
    """What an offline training is; the defaults train a Decision Transformer."""

    may_change: ClassVar[tuple[str, ...]] = ("num_updates", "evaluation", "torch_threads", "device", "patience")

    # folders that collect.py made
    datasets: list[str] = Field(["workspace/skills_data"], min_length=1, max_length=100)
    # share of the steps of all datasets together, those of the episodes with the highest returns, that is learned from (0.1:
    # "10 % BC"); with less than 1, and by a model that sees returns, episodes that the collection's end cut are left out
    top: float = Field(1.0, gt=0, le=1)
    # share of the episodes of each dataset that is held out
    held_out: float = Field(0.05, ge=0, le=0.5)
    model: ModelSettings = DTSettings()
    # action: what was done; intended: what was to be done, before noise, or by a teacher's word
    target: Literal["action", "intended"] = "intended"
    # what the model sees of the goal: any of skill, command (speeds and yaw rate), place, words
    goal: list[GoalPart] = []
    # who makes vectors of words, as a world's `encoder`: hashed_ngrams, or transformer:FOLDER; null: the datasets' own
    encoder: EncoderName | None = None
    # distorted copies of each phrase (typing errors, words that nobody knows) that words are drawn from, too
    word_variants: int = Field(20, ge=0, le=1_000)
    # share of the windows that each part of the goal, and the return, is hidden in, so that a prompt may leave it out: one
    # for all, or by part: {skill: 0.5, return: 0.1}; one part of the goal at least is shown always
    hide: Share | dict[Part, Share] = 0.0
    # a snapshot of train_dt.py to begin with; null: none
    init_from: str | None = None
    num_updates: int = Field(20_000, ge=1, le=10**9)
    # windows a batch, in each process that torchrun starts
    batch_size: int = Field(64, ge=1, le=65_536)
    # batches an update
    accumulate: int = Field(1, ge=1, le=10_000)
    # a number, or {start, end}
    learning_rate: float | Schedule = 1e-4
    # updates until the learning rate is whole
    warmup: int = Field(1_000, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(0.25, gt=0)
    # of matrix products: bfloat16 helps on GPUs and on CPUs that have it
    precision: Literal["float32", "bfloat16"] = "float32"
    # torch.compile: a minute at the start, faster then
    compile: bool = False
    seed: int = Field(0, ge=0, le=2**31)
    evaluation: EvaluationSettings = EvaluationSettings()
    # evaluations without a lower held-out loss after which it ends; null: never
    patience: int | None = Field(None, ge=1)
    # updates between lines of metrics.jsonl and TensorBoard
    log_every: int = Field(100, ge=1)
    # seconds between saves of latest/
    save_every: float = Field(30.0, ge=0)
    # auto: a GPU if there is one
    device: Device = "auto"
    # null: as many as there are CPU cores
    torch_threads: int | None = Field(None, ge=1, le=1024)

    @field_validator("hide", mode="before")
    @classmethod
    def _names_parts(cls, value: Any) -> Any:
        if isinstance(value, dict):  # a union's own message would speak of the number alone
            for part, share in value.items():
                if part not in (*get_args(GoalPart), "return"):
                    raise ValueError(f"there is no part {part!r} of a goal; there are {', '.join(get_args(GoalPart))}, return")
                if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
                    raise ValueError(f"{part}: expected a share from 0 to below 1, found {share!r}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> TrainDTSettings:
        rates = self.learning_rate
        if not (min(rates.start, rates.end) >= 0 < rates.start if isinstance(rates, Schedule) else rates > 0):
            raise ValueError("learning_rate: expected a number above 0")
        if len(set(self.goal)) < len(self.goal):
            raise ValueError("goal: expected each part once")
        if self.patience is not None and not self.held_out:
            raise ValueError("patience: no episode is held out to wait for; write held_out: 0.05, or patience: null")
        if self.encoder is not None and "words" not in self.goal:
            raise ValueError("encoder: the goal has no words that it could read; leave it away, or write goal: [words]")
        if self.model.kind == "gcbc" and not self.goal:
            raise ValueError("goal: gcbc needs one, such as [skill, command]")
        if self.model.kind == "bc" and self.goal:
            raise ValueError("goal: bc sees none; write [], or model: {kind: gcbc}")
        if isinstance(self.model, DTSettings) and self.model.width % self.model.heads:
            raise ValueError("model.width: expected a multiple of model.heads")
        parts = prompt_parts(self.model, self.goal)
        if self.hide and (not parts or parts == self.goal[:1]):
            raise ValueError("hide: only a dt with a return, or a goal of several parts, has something to hide; write 0")
        for part in self.hide if isinstance(self.hide, dict) else ():
            if part not in parts:
                raise ValueError(f"hide: there is no {part} to hide; there is {', '.join(parts)}")
            if self.goal == [part]:
                raise ValueError(f"hide: {part} is all of the goal, which is never hidden whole; leave it away")
        return self


def hidden_shares(settings: TrainDTSettings) -> list[float]:
    """How often each part of the goal is hidden, and last the return; empty for a model that shows all it has."""
    if not isinstance(settings.model, DTSettings):
        return []
    parts: list[Part] = [*settings.goal, "return"]
    return [settings.hide.get(part, 0.0) if isinstance(settings.hide, dict) else settings.hide for part in parts]

"""What each training needs to be told, checked before anything is loaded. No defaults: a notebook gives the numbers."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields

from srmir_lib.errors import InputError

MAY_BE_ZERO = ("seed", "beta", "temperature", "monitor_every", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every training has. No defaults: a number is chosen in one place, a notebook's parameters cell."""

    learning_rate: float
    lr_scheduler: str  # "linear", "constant", … as in transformers
    max_steps: int  # updates of the weights
    micro_batch: int  # sequences per forward and backward pass; changes memory, not the result
    lora_r: int
    lora_alpha: int
    seed: int
    device: str = "auto"
    gradient_checkpointing: bool = False  # less memory, more time

    @classmethod
    def of(cls, values: Mapping):
        """Settings from a mapping that holds at least their names, such as a notebook's `globals()`."""
        missing = [f.name for f in fields(cls) if f.name not in values and f.default is MISSING]
        if missing:
            raise InputError(f"{cls.__name__}: no value for {', '.join(missing)}; set it in the parameters cell")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def __post_init__(self):
        for field in fields(self):
            value, least = getattr(self, field.name), "at least 0" if field.name in MAY_BE_ZERO else "above 0"
            if field.type not in (int, float):
                continue
            if isinstance(value, str) or (field.type is int and value != int(value)):
                kind = "a whole number" if field.type is int else "a number (in YAML write 5.0e-6, not 5e-6)"
                raise InputError(f"{field.name}: {value!r} is not {kind}")
            if not math.isfinite(value) or value < 0 or (value == 0 and field.name not in MAY_BE_ZERO):
                raise InputError(f"{field.name}: {value} must be a finite number {least}")


@dataclass(frozen=True, kw_only=True)
class SFTSettings(Settings):
    """Supervised fine-tuning: sequences an update, and tokens a sequence (longer ones are cut)."""

    batch_size: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class DPOSettings(SFTSettings):
    """Direct preference optimisation (Rafailov et al. 2023): `beta` keeps the policy near its reference."""

    beta: float


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(Settings):
    """Group relative policy optimisation (Shao et al. 2024), in TRL's words."""

    prompts_per_step: int
    num_generations: int  # G, completions per prompt
    num_iterations: int  # updates per batch of completions
    max_completion_length: int  # tokens
    temperature: float
    beta: float  # weight of the KL penalty; TRL's own default is 0
    epsilon: float  # clip range of the probability ratio
    scale_rewards: str  # "group", "batch" or "none"
    loss_type: str  # "grpo" (a mean per answer, as in the paper), "dapo" (a mean per token), … as in TRL
    monitor_every: int  # steps between two looks at the base model's log-likelihood; 0 is never
    checkpoint_every: int  # steps between two checkpoints; 0 is none

    def __post_init__(self):
        super().__post_init__()
        if self.num_generations < 2:
            raise InputError(f"num_generations: {self.num_generations}; a group needs at least 2 completions")
        if self.prompts_per_step * self.num_generations % self.micro_batch:
            raise InputError(
                f"micro_batch: {self.micro_batch} must divide prompts_per_step * num_generations = "
                f"{self.prompts_per_step * self.num_generations}"
            )
        if self.checkpoint_every % self.num_iterations:
            raise InputError(f"checkpoint_every: {self.checkpoint_every} must be a multiple of num_iterations")

"""What each training needs to be told, checked before anything is loaded. No defaults: a notebook gives the numbers."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srmir_lib.errors import InputError

Above0, AtLeast0 = Annotated[float, Field(gt=0)], Annotated[float, Field(ge=0)]
Count, CountOr0 = Annotated[int, Field(gt=0)], Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """What every training has. No defaults: a number is chosen in one place, a notebook's parameters cell.

    Values are checked strictly when the settings are made (5.0 is no whole number, "5e-6" no number); one that does
    not fit is an `InputError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    learning_rate: Above0
    lr_scheduler: str  # "linear", "constant", … as in transformers
    max_steps: Count  # updates of the weights
    micro_batch: Count  # sequences per forward and backward pass; changes memory, not the result
    lora_r: Count
    lora_alpha: Count
    seed: CountOr0
    device: str = "auto"
    gradient_checkpointing: bool = False  # less memory, more time

    def __init__(self, **values):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError("; ".join(_explain(type(self).__name__, problem) for problem in error.errors())) from None

    @classmethod
    def of(cls, values: Mapping):
        """Settings from a mapping that holds at least their names, such as a notebook's `globals()`."""
        return cls(**{name: values[name] for name in cls.model_fields if name in values})

    def _check_micro_batch(self, name: str, sequences: int) -> None:
        if sequences % self.micro_batch:
            raise InputError(f"micro_batch: {self.micro_batch} must divide {name} = {sequences}")


class SFTSettings(Settings):
    """Supervised fine-tuning: sequences an update, and tokens a sequence (longer ones are cut)."""

    batch_size: Count
    max_length: Count

    def __init__(self, **values):
        super().__init__(**values)
        self._check_micro_batch("batch_size", self.batch_size)


class DPOSettings(SFTSettings):
    """Direct preference optimisation (Rafailov et al. 2023): `beta` keeps the policy near its reference."""

    beta: AtLeast0


class GRPOSettings(Settings):
    """Group relative policy optimisation (Shao et al. 2024), in TRL's words; `papers.grpo.grpo_loss` is the loss."""

    prompts_per_step: Count
    num_generations: Annotated[int, Field(ge=2)]  # G, completions per prompt
    num_iterations: Count  # updates per batch of completions
    max_completion_length: Count  # tokens
    temperature: AtLeast0
    beta: AtLeast0  # weight of the KL penalty; TRL's own default is 0
    epsilon: Above0  # clip range of the probability ratio
    scale_rewards: Literal["group", "batch", "none"]
    loss_type: Literal["grpo", "dapo"]  # a mean over each answer first, as in the paper; or one over all tokens
    use_bias_correction_kl: bool  # the KL estimate times the probability ratio, as TRL has it
    monitor_every: CountOr0  # steps between two looks at the base model's log-likelihood; 0 is never
    checkpoint_every: CountOr0  # steps between two checkpoints; 0 is none

    def __init__(self, **values):
        super().__init__(**values)
        self._check_micro_batch("prompts_per_step * num_generations", self.prompts_per_step * self.num_generations)
        if self.checkpoint_every % self.num_iterations:
            raise InputError(f"checkpoint_every: {self.checkpoint_every} must be a multiple of num_iterations")


def _explain(settings: str, problem: dict) -> str:
    name, value = ".".join(map(str, problem["loc"])), problem["input"]
    if problem["type"] == "missing":
        return f"{settings}: no value for {name}; set it in the parameters cell"
    hint = "; in YAML write 5.0e-6, not 5e-6" if isinstance(value, str) and problem["type"] == "float_type" else ""
    return f"{name}: {value!r}; {problem['msg'].lower()}{hint}"

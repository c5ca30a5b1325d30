"""Train a policy with TRL's own trainers: supervised (SFT), direct preferences (DPO) and group-relative RL (GRPO).

Every policy is a LoRA adapter (Hu et al. 2022) on a frozen base model, saved as a PEFT folder with its `history.jsonl`.
With the adapter off the policy *is* the reference model, so no second copy of the weights is held.

Departures from TRL 1.16's defaults: rewards and losses that are not finite stop the run (the trainer would go on);
prompts come in an order fixed by the seed, in one long epoch, so that a killed run can go on.
"""

import math
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from peft import LoraConfig
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from srmir_lib.artifacts import InputError, atomic_path, write_json, write_jsonl
from srmir_lib.checkpoints import MarkComplete, checkpoint_folder, finished_history, newest_complete, run_key
from srmir_lib.models import load_tokenizer, load_weights, pick_device
from srmir_lib.monitors import RunCallback, WatchedReward
from srmir_lib.trunk import share_weights

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


def train_sft(
    base_model, demonstrations: Dataset, output_dir, settings: SFTSettings, resume: bool = False
) -> list[dict]:
    """Fine-tune on `demonstrations` (columns prompt, completion: conversations); the loss reads the completion only.

    Saves the adapter in `output_dir` and returns its history, one dict an update. `resume`: a finished adapter that
    these very settings, data and base model made is not made again.
    """
    columns = ("prompt", "completion")
    return _train(SFTTrainer, SFTConfig, base_model, demonstrations, columns, output_dir, settings, resume)


def train_dpo(base_model, preferences: Dataset, output_dir, settings: DPOSettings, resume: bool = False) -> list[dict]:
    """Optimise preferences (columns prompt, chosen, rejected: conversations) directly (Rafailov et al. 2023, eq. 7).

    The rest is as in `train_sft`; the history has `rewards/margins` and `rewards/accuracies`, the implicit reward's.
    """
    columns = ("prompt", "chosen", "rejected")
    return _train(DPOTrainer, DPOConfig, base_model, preferences, columns, output_dir, settings, resume)


def train_grpo(
    base_model,
    prompts: Dataset,
    reward_function,
    output_dir,
    settings: GRPOSettings,
    resume: bool = False,
    model=None,
) -> list[dict]:
    """Train on `prompts` (column prompt: a conversation; every other column goes to the reward function).

    Saves the adapter in `output_dir` and returns its history, one dict an update, in TRL's words: step, reward, kl and
    entropy (nats a token), completions/mean_length (tokens), num_tokens (so far); beside them seconds, coherence/…
    (`monitors.WatchedReward`), and what the reward function logs. `resume`: a finished adapter of the same settings,
    prompts, base model and reward `fingerprint` is not made again, and a killed run goes on from its newest complete
    checkpoint, to the same result. `model`: `base_model` if it is in memory (`load_weights`); the policy shares its
    weights, which are frozen. Rewards or losses that are not finite are an `InputError`.
    """
    output_dir = Path(output_dir)
    _check_columns(prompts, ("prompt",))
    key = run_key(base_model, prompts, asdict(settings), getattr(reward_function, "fingerprint", ""))
    if resume and (history := finished_history(output_dir, key)):
        return history
    checkpoints = checkpoint_folder(output_dir, key, resume)
    tokenizer = load_tokenizer(base_model)
    completions = settings.prompts_per_step * settings.num_generations
    config = GRPOConfig(
        **_arguments(settings, checkpoints),
        gradient_accumulation_steps=completions // settings.micro_batch,
        num_generations=settings.num_generations,
        num_iterations=settings.num_iterations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        beta=settings.beta,
        epsilon=settings.epsilon,
        scale_rewards=settings.scale_rewards,
        loss_type=settings.loss_type,
        shuffle_dataset=False,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 500,
    )
    reward = WatchedReward(reward_function, tokenizer, settings.monitor_every, settings.micro_batch)
    trainer = GRPOTrainer(
        model=load_weights(base_model, settings.device) if model is None else share_weights(model),
        reward_funcs=[reward],
        args=config,
        train_dataset=prompts.select(prompt_order(len(prompts), settings)),
        processing_class=tokenizer,
        peft_config=_lora(settings),
        callbacks=[RunCallback(output_dir.name), MarkComplete()],
    )
    trainer.remove_callback(PrinterCallback)
    reward.model = trainer.model
    try:
        trainer.train(resume_from_checkpoint=newest_complete(checkpoints))
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise InputError(
            f"{output_dir.name}: the policy broke down after step {trainer.state.global_step} "
            "(its probabilities are not finite); nothing was saved; lower learning_rate"
        ) from error
    return _save(trainer, output_dir, key, checkpoints)


def prompt_order(count: int, settings: GRPOSettings) -> np.ndarray:
    """Which prompt comes when: seeded permutations one after another, so all are seen before one is seen again.

    The trainer then walks through one long epoch: within an epoch it can resume exactly, across epochs it cannot.
    """
    needed = settings.prompts_per_step * math.ceil(settings.max_steps / settings.num_iterations)
    rng = np.random.default_rng(settings.seed)
    return np.concatenate([rng.permutation(count) for _ in range(math.ceil(needed / count))])[:needed]


def _train(trainer_class, config_class, base_model, dataset, columns, output_dir, settings, resume) -> list[dict]:
    output_dir = Path(output_dir)
    _check_columns(dataset, columns)
    key = run_key(base_model, dataset, asdict(settings), "")
    if resume and (history := finished_history(output_dir, key)):
        return history
    if settings.batch_size % settings.micro_batch:
        raise InputError(f"micro_batch: {settings.micro_batch} must divide batch_size = {settings.batch_size}")
    tokenizer = load_tokenizer(base_model)
    dataset = dataset.select_columns(list(columns))
    _check_conversations(tokenizer, dataset, columns[1:], settings.max_length)
    checkpoints = checkpoint_folder(output_dir, key, resume=False)
    config = config_class(
        **_arguments(settings, checkpoints),
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch,
        max_length=settings.max_length,
        save_strategy="no",
        **({"beta": settings.beta} if isinstance(settings, DPOSettings) else {}),
    )
    disable_progress_bars()  # one bar for a training, its own, not five for reading the data
    trainer = trainer_class(
        model=load_weights(base_model, settings.device),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=_lora(settings),
        callbacks=[RunCallback(output_dir.name)],
    )
    enable_progress_bars()
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return _save(trainer, output_dir, key, checkpoints)


def _arguments(settings: Settings, folder: Path) -> dict:
    """Arguments that all three trainers share, with TRL's defaults undone that do not fit a CPU."""
    cuda = pick_device(settings.device).type == "cuda"
    return {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": settings.micro_batch,
        "seed": settings.seed,
        "use_cpu": not cuda,
        "bf16": cuda,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "dataloader_pin_memory": cuda,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the trainer would replace a NaN loss by the running mean
        "disable_tqdm": True,
        "report_to": "none",
    }


def _lora(settings: Settings) -> LoraConfig:
    shape = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha}
    return LoraConfig(**shape, target_modules="all-linear", task_type="CAUSAL_LM")


def _check_columns(dataset: Dataset, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in dataset.column_names]
    if missing or len(dataset) == 0:
        raise InputError(f"training data: {len(dataset)} rows; missing columns: {', '.join(missing) or 'none'}")


def _check_conversations(tokenizer, dataset: Dataset, answers: tuple[str, ...], max_length: int) -> None:
    """An answer must end with the token that ends generation, or the policy never learns to stop; few may be cut."""
    longer = 0
    for row, example in enumerate(dataset):
        for name in answers:
            ids = tokenizer.apply_chat_template(example["prompt"] + example[name], return_dict=False)
            if row == 0 and tokenizer.eos_token_id not in ids[-3:]:
                raise InputError(
                    f"chat template: a conversation ends with {tokenizer.decode(ids[-3:])!r}, without the end token "
                    f"{tokenizer.eos_token!r}; set the tokenizer's eos_token to the template's end of turn"
                )
            longer += len(ids) > max_length
    share = longer / (len(dataset) * len(answers))
    if share > 0.1:
        raise InputError(f"max_length: {longer} conversations ({share:.0%}) exceed {max_length} tokens; raise it")
    if longer:
        warnings.warn(f"{longer} conversations are longer than {max_length} tokens and are cut", stacklevel=3)


def _save(trainer, output_dir: Path, key: str, checkpoints: Path) -> list[dict]:
    """Save adapter, history and key in one atomic step, and only then delete the checkpoints (they hold pickles)."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    history = [{name: value for name, value in row.items() if value is not None} for row in rows]
    with atomic_path(output_dir) as fresh:
        trainer.model.save_pretrained(str(fresh))
        write_jsonl(fresh / "history.jsonl", history)
        write_json(fresh / "training.json", {"key": key})
    shutil.rmtree(checkpoints, ignore_errors=True)
    return history

"""What training costs with either design: reward models up to a stopping rule, and a GRPO step that they score."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

from srmir_lib.models.loading import share_weights
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.fit import SetRun, fit_sets
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.reward_training import RewardSettings
from srmir_lib.statistics import pair_accuracy
from srmir_lib.studies.a5_cost.contestants import words
from srmir_lib.studies.a5_cost.limits import Load, race


def training_ladder(
    design: str,
    trunk: Trunk,
    preferences: Mapping,
    categories: Sequence[str],
    settings: RewardSettings,
    budgets: Sequence[int],
    seed: int = 0,
) -> list[dict]:
    """Train the set anew with every number of updates in `budgets`: rows of updates, seconds, validation, test.

    Seconds are all that `fit_sets` takes: tokens, the trunk's reading, training, saving. Accuracy is that of
    each pair's own model, a fraction of the split's pairs.
    """
    rows = []
    for steps in budgets:
        with tempfile.TemporaryDirectory() as scratch:
            run = SetRun(Path(scratch, "set"), categories, settings.changed(max_steps=steps), design, seed=seed)
            start = time.perf_counter()
            fit_sets({design: run}, trunk, preferences)
            row = {"updates": steps, "seconds": time.perf_counter() - start}
            models = ShadowRewardModels.load(run.folder, trunk)
            rows.append(row | {split: _accuracy(models, preferences[split]) for split in ("validation", "test")})
    return rows


def _accuracy(models: ShadowRewardModels, pairs) -> float:
    known = pairs.select([row for row, name in enumerate(pairs["category"]) if name in models.categories])
    sides = {"prompt": "prompt", "chosen": "rejected", "category": "category"}  # a trunk reads a prompt once for both
    chosen, rejected = models.score(*([*known[one], *known[other]] for one, other in sides.items())).chunk(2)
    return pair_accuracy(chosen, rejected)


def step_seconds(
    policy,
    tokenizer,
    rewards: Mapping[str, list],
    prompts: Sequence,
    load: Load,
    rank: int,
    rounds: int,
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """GRPO steps that different `rewards` score, in turns: ({name: seconds of each round}, the same without sampling).

    `rewards`: name -> what TRL's `GRPOTrainer` takes as `reward_funcs`.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = {
            name: grpo_trainer(policy, tokenizer, list(functions), prompts, load, rank, folder, seed)
            for name, functions in rewards.items()
        }
        race({name: trainer.train for name, (trainer, _) in built.items()}, rounds, policy.device.type)
    clocks = {name: clock for name, (_, clock) in built.items()}
    steps = {name: np.array(clock.steps[1:]) for name, clock in clocks.items()}  # the first round is not counted
    return steps, {name: steps[name] - np.array(clock.sampling[1:]) for name, clock in clocks.items()}


class StepClock(TrainerCallback):
    """Seconds of every step of a trainer, and of the sampling inside it."""

    def __init__(self):
        self.steps, self.sampling, self.started = [], [], 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(time.perf_counter() - self.started)

    @contextmanager
    def sample(self):
        """Around a call that samples."""
        start = time.perf_counter()
        yield
        self.sampling.append(time.perf_counter() - start)


def grpo_trainer(
    policy, tokenizer, rewards: list, prompts: Sequence, load: Load, rank: int, folder: str, seed: int = 0
):
    """(TRL's `GRPOTrainer`, its `StepClock`): one step a `train()`, a LoRA policy, a KL penalty, TRL's own defaults.

    Every completion has exactly `load.completion` tokens, all of them words, so that every step is as much work.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    allowed = {tokenizer.convert_tokens_to_ids("Ġ" + word) for word in words(tokenizer)}
    cuda = policy.device.type == "cuda"
    config = GRPOConfig(
        output_dir=folder,
        max_steps=1,
        per_device_train_batch_size=len(prompts) * load.group,
        num_generations=load.group,
        max_completion_length=load.completion,
        generation_kwargs={
            "min_new_tokens": load.completion,
            "suppress_tokens": [at for at in range(policy.config.vocab_size) if at not in allowed],
        },
        beta=0.05,
        seed=seed,
        use_cpu=not cuda,
        bf16=cuda,
        gradient_checkpointing=False,
        dataloader_pin_memory=cuda,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = StepClock()
    trainer = GRPOTrainer(
        model=share_weights(policy),
        reward_funcs=rewards,
        reward_processing_classes=[tokenizer] * len(rewards),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    generate = trainer.model.generate

    def timed(*arguments, **named):
        with clock.sample():
            return generate(*arguments, **named)

    trainer.model.generate = timed
    return trainer, clock

"""Training of the `separate` design by TRL's `RewardTrainer`, one LoRA classifier after the other.

PCRM's limits are a variant of the same run. Importing TRL takes seconds: scoring does without it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers import PrinterCallback, set_seed
from trl import RewardConfig, RewardTrainer

from srmir_lib.artifacts import atomic_path, write_json
from srmir_lib.errors import InputError
from srmir_lib.models.kinds import separate_problem
from srmir_lib.models.processes import Together, processes, sharded
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.pcrm import pcrm_loss
from srmir_lib.papers.srmir import bradley_terry_loss
from srmir_lib.reward_models.config import kept_fit, write_config
from srmir_lib.reward_models.pairs import TokenizedPairs
from srmir_lib.reward_models.separate import base_classifier
from srmir_lib.settings.reward_training import LIMITS, RewardSettings

TOKENS = 4096
"""Tokens of both answers of the pairs that a pass reads, padding counted, at most: an update of longer pairs takes
several passes."""


class PCRMRewardTrainer(RewardTrainer):
    """Minimises `pcrm_loss`; the column `margin` holds the limits. Logging and centering are TRL's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        limit = inputs.pop("margin")  # else TRL would subtract it
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
        loss = loss - bradley_terry_loss(chosen, rejected) + pcrm_loss(chosen, rejected, limit)
        return (loss, outputs) if return_outputs else loss


def fit_separate(
    pairs: TokenizedPairs,
    output_dir: str | Path,
    categories: Sequence[str],
    settings: RewardSettings,
    seed: int = 0,
    training: str = "own",
    competence: Sequence[str] | None = None,
    progress: str | None = None,
) -> dict[str, list[dict]]:
    """Train one model per category on the pairs that `select_pairs` gives it, from the trunk's base model.

    `categories=[ALL]` trains a single model on all the pairs of `competence` (the categories it must cover). Finished
    category folders with the same data, settings and seed are kept, so a killed run goes on. Returns the history
    (loss, accuracy, ... per logged step) of each model; the set is read by `ShadowRewardModels.load(output_dir)`.
    """
    if problem := separate_problem(pairs.trunk.model):
        raise InputError(f"{pairs.trunk.base_model}: {problem}")
    if sharded():
        raise InputError("design separate: each process holds all weights; run it without FSDP and DeepSpeed")
    if settings.averaged_fits > 1:
        raise InputError(f"averaged_fits: {settings.averaged_fits}; design separate averages none, design shared does")
    output_dir, history, target, data = Path(output_dir), {}, pairs.target(settings), pairs.data
    if target is not None:
        data = data.add_column("margin", target.tolist())  # TRL's name for what a pair's gap is compared with
    rows = pairs.rows(categories, settings, training, seed, competence)
    write_config(output_dir, output_dir, "separate", pairs.trunk, categories, settings, training)
    for category, own in tqdm(rows.items(), desc=progress, disable=progress is None, leave=False):
        key = pairs.key({category: own}, target, settings, training, seed)
        place = Together(output_dir / category, key, pairs.trunk.device.type == "cpu")
        if fit := kept_fit(place.folder, place.key):
            place.keep()
        else:
            (output_dir / "calibration.json").unlink(missing_ok=True)  # it described the scores of the model before
            with atomic_path(place.own) as fresh:  # each process has all weights, and writes its own
                found = _train(pairs.trunk, data.select(own), settings, seed, fresh)
                write_json(fresh / "fit.json", fit := {"key": place.key, "history": found})
            place.wait()
        history[category] = fit["history"]
    return history


def _train(trunk: Trunk, data, settings: RewardSettings, seed: int, folder: Path):
    """One `RewardTrainer` run: adapter and head to `folder`, the logged steps returned. No checkpoints remain."""
    set_seed(seed)  # the new head and the adapter are drawn from it
    classifier = base_classifier(trunk.base_model)  # with weights of its own: TRL trains inside them
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    longest = max(len(ids) for side in ("chosen_ids", "rejected_ids") for ids in data[side])
    batch = settings.batch_size // processes()
    at_once = next(
        most for most in range(batch, 0, -1) if batch % most == 0 and (2 * most * longest <= TOKENS or most == 1)
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            output_dir=scratch,
            max_steps=settings.max_steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=batch // at_once,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            center_rewards_coefficient=settings.center_rewards_coefficient or None,
            max_length=None,  # checked in `tokenize_pairs`
            seed=seed,
            data_seed=seed,
            bf16=False,
            use_cpu=trunk.device.type == "cpu",
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=max(1, settings.max_steps // 10),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        kind = PCRMRewardTrainer if settings.objective in LIMITS else RewardTrainer
        trainer = kind(
            model=classifier, args=arguments, train_dataset=data, processing_class=trunk.tokenizer, peft_config=lora
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    return [row for row in trainer.state.log_history if "loss" in row]

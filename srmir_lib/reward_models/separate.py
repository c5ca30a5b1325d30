"""The `separate` design: one LoRA classifier per category, trained by TRL's `RewardTrainer`; the yardstick.

Every category is a PEFT folder (adapter + `score` head) that `AutoModelForSequenceClassification` and `PeftModel` open
without this library. Training sees right-padded conversations in the chat template; scoring sees the same.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer

from srmir_lib.artifacts import atomic_path, read_json, write_json
from srmir_lib.conversations import conversation_ids
from srmir_lib.data.introspection import Introspector
from srmir_lib.errors import InputError
from srmir_lib.models.embeddings import micro_batches
from srmir_lib.models.loading import fingerprint, load_tokenizer, load_trunk, pick_device, quiet
from srmir_lib.papers.pcrm import pcrm_loss
from srmir_lib.papers.srmir import bradley_terry_loss
from srmir_lib.reward_models.config import LIMITS, RewardSettings, write_config
from srmir_lib.reward_models.pairs import pair_targets, select_pairs, tokenize_pairs


class LimitedRewardTrainer(RewardTrainer):
    """Minimises `pcrm_loss`; the column `margin` holds the limits. Logging and centering are TRL's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        limit = inputs.pop("margin")  # else TRL would subtract it
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
        loss = loss - bradley_terry_loss(chosen, rejected) + pcrm_loss(chosen, rejected, limit)
        return (loss, outputs) if return_outputs else loss


def fit_separate(
    base_model: str | Path,
    preferences: Mapping,
    output_dir: str | Path,
    categories: Sequence[str],
    settings: RewardSettings,
    seed: int = 0,
    training: str = "own",
    device: str = "auto",
    competence: Sequence[str] | None = None,
    progress: str | None = None,
) -> dict[str, list[dict]]:
    """Train one model per category on `preferences["train"]` (columns prompt, chosen, rejected, category[, margin]).

    `categories=[ALL]` trains a single model on all the pairs of `competence` (the categories it must cover). Finished
    category folders with the same data, settings and seed are kept, so a killed run goes on. Returns the history
    (loss, accuracy, ... per logged step) of each model; the set is read by `ShadowRewardModels.load(output_dir)`.
    """
    output_dir, history = Path(output_dir), {}
    tokenizer, pairs, base_sha256 = load_tokenizer(base_model), preferences["train"], fingerprint(base_model)
    covered = list(competence if competence is not None else categories)
    think = Introspector(base_model, settings.question, settings.draft_tokens, device)
    data = tokenize_pairs(tokenizer, pairs, settings.max_length, think)
    reader = load_trunk(base_model, device) if settings.objective == "pcrm_cosine" else ()
    target = pair_targets(settings, pairs, data["chosen_ids"], data["rejected_ids"], reader)
    if target is not None:
        data = data.add_column("margin", target.tolist())  # TRL's name for what a pair's gap is compared with
    labels = list(pairs["category"])
    write_config(output_dir, output_dir, "separate", base_model, base_sha256, categories, settings, training)
    for category in tqdm(categories, desc=progress, disable=progress is None, leave=False):
        rows = select_pairs(labels, category, covered, training, settings.cross_ratio, settings.unknown_ratio, seed)
        own = data.select(rows)
        key = {
            "settings": asdict(settings),
            "seed": seed,
            "training": training,
            "base_sha256": base_sha256,
            "pairs": len(rows),
            "pairs_sha256": hashlib.sha256(json.dumps(own.to_dict()).encode()).hexdigest(),
        }
        done = output_dir / category / "fit.json"
        fit = read_json(done) if done.exists() else {}
        if fit.get("key") != key:
            (output_dir / "calibration.json").unlink(missing_ok=True)  # it described the scores of the model before
            with atomic_path(output_dir / category) as fresh:
                history_of = _train_averaged(base_model, tokenizer, own, settings, seed, device, fresh)
                fit = {"key": key, "history": history_of}
                write_json(fresh / "fit.json", fit)
        history[category] = fit["history"]
    return history


def _train_averaged(base_model, tokenizer, data, settings: RewardSettings, seed: int, device: str, folder: Path):
    """One model in `folder` and its history; with `averaged_fits`, the mean of the weights of so many fits from one
    start, each in another order of the pairs (WARM: Ramé et al. 2024, arXiv 2401.12187). An adapter's two factors are
    averaged each for itself."""
    history = _train(base_model, tokenizer, data, settings, seed, seed, device, folder)
    file, fits = folder / "adapter_model.safetensors", []
    for order in range(1, settings.averaged_fits):
        with tempfile.TemporaryDirectory() as scratch:
            _train(base_model, tokenizer, data, settings, seed, seed + 1000 * order, device, Path(scratch))
            fits.append(load_file(Path(scratch) / file.name))
    if fits:
        fits.append(load_file(file))
        save_file({name: torch.stack([fit[name] for fit in fits]).mean(dim=0) for name in fits[-1]}, file)
    return history


def _train(base_model, tokenizer, data, settings: RewardSettings, seed: int, order: int, device: str, folder: Path):
    """One `RewardTrainer` run: adapter and head to `folder`, the logged steps returned. No checkpoints remain.

    `seed` draws the head and the adapter, `order` the batches.
    """
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import RewardConfig, RewardTrainer

    from srmir_lib.reward_models.separate import LimitedRewardTrainer

    set_seed(seed)  # the new head and the adapter are drawn from it
    classifier = base_classifier(base_model)
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            output_dir=scratch,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            center_rewards_coefficient=settings.center_rewards_coefficient or None,
            max_length=None,  # checked in tokenize_pairs
            seed=seed,
            data_seed=order,
            bf16=settings.bf16,
            use_cpu=pick_device(device).type == "cpu",
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=max(1, settings.max_steps // 10),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        kind = LimitedRewardTrainer if settings.objective in LIMITS else RewardTrainer
        trainer = kind(
            model=classifier, args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=lora
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    return [row for row in trainer.state.log_history if "loss" in row]


def base_classifier(base_model: str | Path):
    """The base model with a fresh one-number head `score`, float32; the head is trained, or read from an adapter."""
    with quiet():
        classifier = AutoModelForSequenceClassification.from_pretrained(
            str(base_model), num_labels=1, dtype=torch.float32
        )
    tokenizer = load_tokenizer(base_model)
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # which token is last depends on it
    return classifier


class SeparateScorer:
    """One base model in memory, K adapters on it, one of them active at a time."""

    def __init__(
        self,
        folder: str | Path,
        base_model: str | Path,
        categories: Sequence[str],
        device: str = "auto",
        batch_size: int = 64,
        question: str = "",
        draft_tokens: int = 24,
    ):
        from peft import PeftModel

        folder, self.categories, self.batch_size = Path(folder), list(categories), batch_size
        self.tokenizer, self.device = load_tokenizer(base_model), pick_device(device)
        self.think = Introspector(base_model, question, draft_tokens, device)
        model = base_classifier(base_model).to(self.device)
        for category in self.categories:
            adapter = folder / category
            if not (adapter / "adapter_model.safetensors").is_file():
                raise InputError(
                    f"{adapter}: no adapter_model.safetensors for category {category}; train it again (02)"
                )
            try:
                if isinstance(model, PeftModel):
                    model.load_adapter(adapter, category, torch_device=str(self.device))
                else:
                    model = PeftModel.from_pretrained(
                        model, adapter, adapter_name=category, torch_device=str(self.device)
                    )
            except Exception as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"{adapter}: damaged adapter ({reason}); train it again (02)") from error
        self.model = model.eval()

    def score(self, prompts: Sequence, completions: Sequence) -> Tensor:
        """Every model on every row: (N, K), float32, on the CPU."""
        ids = conversation_ids(self.tokenizer, self.think(prompts), completions)
        return torch.stack([self.score_ids(ids, category) for category in self.categories], dim=1)

    def score_routed(self, prompts: Sequence, completions: Sequence, columns: Tensor) -> Tensor:
        """Row i by model `columns[i]` only: (N,). Costs one forward a row, whatever K is."""
        ids, scores = conversation_ids(self.tokenizer, self.think(prompts), completions), torch.zeros(len(columns))
        for column in sorted(set(columns.tolist())):
            rows = (columns == column).nonzero().flatten()
            scores[rows] = self.score_ids([ids[row] for row in rows.tolist()], self.categories[column])
        return scores

    @torch.no_grad()
    def score_ids(self, ids: Sequence[list[int]], category: str) -> Tensor:
        """Scores (N,) of tokenized conversations by one category's model; an empty list gives an empty tensor."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for row, tokens in enumerate(ids):
            if limit is not None and len(tokens) > limit:
                raise InputError(f"row {row}: {len(tokens)} tokens, but the reward model reads at most {limit}")
        self.model.set_adapter(category)  # freezes the others: right for scoring, wrong for joint training
        scores = torch.zeros(len(ids))
        for rows, inputs in micro_batches(ids, self.tokenizer.pad_token_id, self.batch_size, self.device):
            scores[rows] = self.model(**inputs, use_cache=False).logits.squeeze(-1).float().cpu()
        return scores

"""The `separate` design: one LoRA classifier per category, trained by TRL's `RewardTrainer`; the yardstick.

Every category is a PEFT folder (adapter + `score` head) that `AutoModelForSequenceClassification` and `PeftModel` open
without this library. Training sees right-padded conversations in the chat template; scoring sees the same.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from srmir_lib.artifacts import InputError, atomic_path, read_json, write_json
from srmir_lib.embeddings import conversation_ids, fingerprint, micro_batches, quiet
from srmir_lib.introspection import Introspector
from srmir_lib.models import load_tokenizer, pick_device
from srmir_lib.reward_model import ALL, read_config
from srmir_lib.taxonomy import UNKNOWN

OBJECTIVES = ("bradley_terry", "margin")


@dataclass(frozen=True)
class SeparateSettings:
    """How each reward model is trained. The notebook's parameters hold the values; there are no others."""

    max_steps: int  # updates of one model
    batch_size: int  # pairs per update
    learning_rate: float
    lora_rank: int
    lora_alpha: int
    max_length: int  # tokens of the longest allowed conversation; a longer pair is an error, never dropped
    cross_ratio: float = 0.0  # training "cross": pairs of other categories, per pair of the model's own
    unknown_ratio: float = 0.0  # pairs of no category (benign prompts, say), per pair of the model's own
    objective: str = "bradley_terry"  # or "margin": the column `margin` is what the gap must exceed
    center_rewards_coefficient: float = 0.0
    question: str = ""  # an introspective question with {prompt}, whose draft is read before judging; "" asks nothing
    draft_tokens: int = 24  # of that draft, at most
    bf16: bool = False


def select_pairs(
    labels: Sequence[str],
    category: str,
    categories: Sequence[str],
    training: str = "own",
    cross_ratio: float = 0.0,
    unknown_ratio: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Rows that one model sees, sorted. "own": its category's pairs and a sample of the unknown ones; "cross": also a
    sample of the other categories'. `ALL` sees whatever the models of `categories` see together, each row once."""
    if training not in ("own", "cross"):
        raise InputError(f"training: {training!r} is neither own nor cross")
    if category == ALL:
        parts = (select_pairs(labels, c, categories, training, cross_ratio, unknown_ratio, seed) for c in categories)
        return sorted(set().union(*parts))
    own = [row for row, label in enumerate(labels) if label == category]
    if not own:
        raise InputError(f"preferences: no pair of category {category}; collect some, or leave the category out")
    generator = torch.Generator().manual_seed(seed * 1000 + list(categories).index(category))
    chosen = list(own)
    unknown = [row for row, label in enumerate(labels) if label == UNKNOWN]
    others = [row for row, label in enumerate(labels) if label in categories and label != category]
    for pool, ratio in ((unknown, unknown_ratio), (others, cross_ratio if training == "cross" else 0.0)):
        order = torch.randperm(len(pool), generator=generator).tolist()
        chosen += [pool[at] for at in order[: round(ratio * len(own))]]
    return sorted(chosen)


def tokenize_pairs(tokenizer, pairs, max_length: int, objective: str = "bradley_terry", think=list):
    """Preference rows -> `Dataset` of `chosen_ids`, `rejected_ids` (and `margin`), as `RewardTrainer` takes them.

    `think` maps prompts to conversations (an `Introspector`; the default leaves them as they are).
    TRL drops pairs that are too long, in silence; here any is an `InputError` that counts them.
    """
    from datasets import Dataset

    prompts = think(pairs["prompt"])
    columns = {f"{side}_ids": conversation_ids(tokenizer, prompts, pairs[side]) for side in ("chosen", "rejected")}
    lengths = [max(map(len, both)) for both in zip(columns["chosen_ids"], columns["rejected_ids"], strict=True)]
    too_long = sum(length > max_length for length in lengths)
    if too_long:
        raise InputError(
            f"preferences: {too_long} pairs exceed max_length {max_length}; the longest has {max(lengths)}"
        )
    if objective == "margin":
        if "margin" not in pairs.column_names:
            raise InputError(
                "preferences: objective margin needs a column margin; run 03_margins, or use bradley_terry"
            )
        margin = torch.tensor(pairs["margin"], dtype=torch.float32)
        if not margin.isfinite().all():
            raise InputError(f"preferences: the margin of row {int((~margin.isfinite()).nonzero()[0])} is not finite")
        columns["margin"] = margin.tolist()
    elif objective != "bradley_terry":
        raise InputError(f"objective: {objective!r} is none of {', '.join(OBJECTIVES)}")
    return Dataset.from_dict(columns)


def fit_separate(
    base_model: str | Path,
    preferences: Mapping,
    output_dir: str | Path,
    categories: Sequence[str],
    settings: SeparateSettings,
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
    data = tokenize_pairs(tokenizer, pairs, settings.max_length, settings.objective, think)
    labels = list(pairs["category"])
    _write_config(output_dir, base_model, base_sha256, categories, settings, training)
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
                fit = {"key": key, "history": _train(base_model, tokenizer, own, settings, seed, device, fresh)}
                write_json(fresh / "fit.json", fit)
        history[category] = fit["history"]
    return history


def settings_of(folder: str | Path) -> SeparateSettings:
    """The settings that a set in `folder` was trained with, so that another set can be trained alike."""
    category = read_config(folder)["categories"][0]
    fit = read_json(Path(folder) / category / "fit.json")
    try:
        return SeparateSettings(**fit["key"]["settings"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/{category}/fit.json: no settings ({error!r}); train the set again (02)") from error


def _write_config(output_dir: Path, base_model, base_sha256: str, categories, settings, training: str) -> None:
    folder = Path(base_model)
    output_dir.mkdir(parents=True, exist_ok=True)
    config = {
        "design": "separate",
        "categories": list(categories),
        "base_model": os.path.relpath(folder.resolve(), output_dir.resolve()) if folder.is_dir() else str(base_model),
        "base_is_folder": folder.is_dir(),
        "base_sha256": base_sha256,
        "objective": settings.objective,
        "question": settings.question,
        "draft_tokens": settings.draft_tokens,
        "training": training,
    }
    write_json(output_dir / "config.json", config)


def _train(base_model, tokenizer, data, settings: SeparateSettings, seed: int, device: str, folder: Path) -> list[dict]:
    """One `RewardTrainer` run: adapter and head to `folder`, the logged steps returned. No checkpoints remain."""
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import RewardConfig, RewardTrainer

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
            bf16=settings.bf16,
            use_cpu=pick_device(device).type == "cpu",
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=max(1, settings.max_steps // 10),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
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

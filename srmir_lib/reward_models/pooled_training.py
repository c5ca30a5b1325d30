"""Fine-tune a pretrained encoder into a `pooled` set of reward models, with `transformers.Trainer`.

Two kinds of evidence in one loss: responses that people labelled safe or unsafe (cross-entropy on one response), and
pairs of which people preferred one (a pair objective on the gap). An example's category picks the output it trains.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from srmir_lib.artifacts import atomic_path, digest, read_json, write_json
from srmir_lib.conversations import text_of
from srmir_lib.data.preferences import as_pair
from srmir_lib.errors import InputError
from srmir_lib.models.loading import fingerprint, load_trunk, pick_device, quiet, resolve_encoder
from srmir_lib.papers.legend import margin_loss
from srmir_lib.papers.srmir import categorized_reward
from srmir_lib.reward_models.pairs import pair_loss, pair_targets
from srmir_lib.reward_models.pooled import PairTokenizer, collate, load_classifier
from srmir_lib.settings.reward_training import LIMITS, EncoderSettings
from srmir_lib.taxonomy import UNKNOWN

LABELLED_COLUMNS = ("prompt", "completion", "unsafe", "category")


def fit_pooled(
    encoder: str | Path,
    labelled,
    pairs,
    output_dir: str | Path,
    categories: Sequence[str],
    reading: PairTokenizer,
    settings: EncoderSettings,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> list[dict]:
    """Fine-tune one encoder with K outputs, save the set in `output_dir`, return the history (loss per logged step).

    `labelled`: rows or `Dataset` with prompt, completion, unsafe (0/1), category. `pairs`: rows of `as_pair`, with
    category, and `margin` (target gap, score units) if the objective is "margin". Either may be empty. The category
    "unknown" trains the mean of the outputs. The set is read by `ShadowRewardModels.load(output_dir)`. A finished set
    that these very settings, data and encoder made is kept, so a stage that was killed later does not train again.
    """
    base, output_dir = resolve_encoder(encoder), Path(output_dir)
    torch.manual_seed(seed)
    # Attention dropout off: with it the processor falls back to an attention three times slower on long texts.
    model, tokenizer = load_classifier(base, num_labels=len(categories), attention_probs_dropout_prob=0.0)
    labelled = _rows(labelled, "labelled", LABELLED_COLUMNS)
    pairs = [row | as_pair(row) for row in _rows(pairs, "pairs", ("category",), as_pair)]
    targets = _targets(settings, tokenizer, pairs, base, device)
    examples = _examples(tokenizer, labelled, pairs, categories, reading, targets)
    config = {
        "design": "pooled",
        "categories": list(categories),
        "reading": reading.model_dump(),
        "base_model": str(encoder),
        "base_sha256": fingerprint(base),
        "settings": settings.model_dump(),
        "seed": seed,
        "examples_sha256": digest(examples),
    }
    if (output_dir / "fit.json").exists() and read_json(output_dir / "config.json") == config:
        return read_json(output_dir / "fit.json")
    order = length_batches([e["length"] for e in examples], settings.batch_size, settings.epochs, seed)
    on_cpu = pick_device(device).type == "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            num_train_epochs=1,  # `order` holds every pass, so that a batch has texts of similar length
            per_device_train_batch_size=settings.batch_size,
            train_sampling_strategy="sequential",
            warmup_steps=settings.warmup,
            lr_scheduler_type="linear",
            bf16=settings.bf16,
            use_cpu=on_cpu,
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=max(1, len(order) // settings.batch_size // 40),
            report_to="none",
            disable_tqdm=True,  # in a notebook it would also print a table of all losses
            dataloader_pin_memory=not on_cpu,
            seed=seed,
        )
        average = _Average(model.to(pick_device(device)), settings.averaging)
        trainer = _EncoderTrainer(
            model,
            arguments,
            lambda rows: _stack(rows, tokenizer),
            [examples[at] for at in order],
            callbacks=[average, _Bar(progress)],
            optimizers=(_optimizer(model, settings), None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.settings = settings
        trainer.train()
    model.load_state_dict(average.mean.module.state_dict())
    history = [row for row in trainer.state.log_history if "loss" in row]
    with atomic_path(output_dir) as fresh:
        model.save_pretrained(fresh / "encoder")
        tokenizer.save_pretrained(fresh / "encoder")
        write_json(fresh / "config.json", config)
        write_json(fresh / "fit.json", history)
    return history


def length_batches(lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[int]:
    """Order of examples for `epochs` passes: batches of similar length, in random order (so length tells no time).

    Every pass shuffles, sorts runs of 16 batches by length, cuts them into batches and shuffles these. A last fraction
    of a pass is cut short. Every batch is full: a pass that does not divide is filled up with its own first examples.
    """
    draw, order = random.Random(seed), []
    for turn in range(int(epochs) + (epochs % 1 > 0)):
        rows = list(range(len(lengths)))
        draw.shuffle(rows)
        rows += rows[: -len(rows) % batch_size]
        run_size = 16 * batch_size
        runs = [sorted(rows[at : at + run_size], key=lengths.__getitem__) for at in range(0, len(rows), run_size)]
        batches = [run[at : at + batch_size] for run in runs for at in range(0, len(run), batch_size)]
        draw.shuffle(batches)
        kept = round(len(batches) * min(1.0, epochs - turn))
        order += [row for batch in batches[:kept] for row in batch]
    return order


def mixed_loss(
    scores: Tensor, batch: dict[str, Tensor], pair_weight: float, pair_loss: Callable = margin_loss, centre: float = 0.0
) -> Tensor:
    """Cross-entropy on labelled responses and `pair_loss` on pairs, a mean over the batch's examples.

    `scores` (R,): first the L labelled responses, then P chosen and P rejected ones. `batch`: `safe` (L,) in {0, 1},
    `target` (P,), what `pair_loss` compares the gap with (a margin of 0 is Bradley-Terry). `centre`: weight of the
    squared sum of a pair's scores (Eisenstein et al. 2023), added to its loss. Scalar:
    (sum of cross-entropies + pair_weight * sum of pair losses) / (L + P).
    """
    labelled, pairs = len(batch["safe"]), len(batch["target"])
    loss = scores.new_zeros(())
    if labelled:
        loss = loss + labelled * binary_cross_entropy_with_logits(scores[:labelled], batch["safe"])
    if pairs:
        chosen, rejected = scores[labelled : labelled + pairs], scores[labelled + pairs :]
        loss = loss + pair_weight * pairs * pair_loss(chosen, rejected, batch["target"])
        loss = loss + pair_weight * centre * (chosen + rejected).square().sum()
    return loss / (labelled + pairs)


class _EncoderTrainer(Trainer):
    """The loss above, inside `transformers.Trainer`."""

    settings: EncoderSettings

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = {name: inputs.pop(name) for name in ("head", "safe", "target")}
        scores, settings = model(**inputs).logits.float(), self.settings
        on_pairs = pair_loss(settings.objective) if settings.objective in LIMITS else margin_loss
        how = settings.pair_weight, on_pairs, settings.center_rewards_coefficient
        loss = mixed_loss(categorized_reward(scores, batch["head"]), batch, *how)
        if settings.mean_weight:
            loss = loss + settings.mean_weight * mixed_loss(scores.mean(dim=1), batch, *how)
        return (loss, scores) if return_outputs else loss


class _Average(TrainerCallback):
    """A running average of the weights (Polyak & Juditsky 1992): less at the mercy of the last few batches."""

    def __init__(self, model, decay: float):
        def step(mean: Tensor, now: Tensor, taken: Tensor) -> Tensor:
            soon = (taken.item() + 1) / (taken.item() + 11)  # so that the first steps are forgotten
            return torch.lerp(mean, now, 1 - min(decay, soon))

        self.mean = AveragedModel(model, avg_fn=step)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.mean.update_parameters(model)


class _Bar(TrainerCallback):
    """A bar over the updates."""

    def __init__(self, shown: bool):
        self.bar = tqdm(desc="encoder", disable=not shown, leave=False)

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar.reset(state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def _optimizer(model, settings: EncoderSettings) -> torch.optim.AdamW:
    """AdamW whose learning rate falls by `layer_decay` from layer to layer towards the embeddings."""
    top = model.config.num_hidden_layers - 1
    groups = []
    for name, weight in model.named_parameters():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if name.startswith("classifier"):
            rate = settings.head_learning_rate
        elif "embeddings" in name:
            rate = settings.learning_rate * settings.layer_decay ** (top + 1)
        else:
            rate = settings.learning_rate * settings.layer_decay ** (top - numbers[0] if numbers else 0)
        decay = settings.weight_decay if weight.ndim > 1 else 0.0
        groups.append({"params": [weight], "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _targets(settings: EncoderSettings, tokenizer, pairs, base: str, device: str) -> list[float]:
    """What each pair's gap is compared with; 0 for Bradley-Terry. Limits by similarity ask the encoder as it came."""
    if not pairs or settings.objective == "bradley_terry":
        return [0.0] * len(pairs)
    table = Dataset.from_list(pairs)
    with quiet():  # answers longer than the encoder reads are expected here
        ids = [tokenizer([text_of(text) for text in table[side]])["input_ids"] for side in ("chosen", "rejected")]
    own = settings.objective == "pcrm_cosine" and not settings.similarity_model
    reader = load_trunk(base, device) if own else ()
    return pair_targets(settings, table, *ids, reader).tolist()


def _examples(
    tokenizer, labelled, pairs, categories: Sequence[str], reading: PairTokenizer, targets: Sequence[float]
) -> list[dict]:
    """Tokenised examples: `texts` (of each of their responses), `head`, `safe` or `target`, `length`."""
    if not labelled and not pairs:
        raise InputError("nothing to train on: no labelled responses and no pairs")

    def encode(rows, column):
        return reading.encode(tokenizer, [row["prompt"] for row in rows], [row[column] for row in rows]) if rows else []

    examples = []
    for row, text in zip(labelled, encode(labelled, "completion"), strict=True):
        examples.append({"texts": [text], "head": _head(row, categories), "safe": 1.0 - row["unsafe"]})
    sides = encode(pairs, "chosen"), encode(pairs, "rejected")
    for row, chosen, rejected, target in zip(pairs, *sides, targets, strict=True):
        examples.append({"texts": [chosen, rejected], "head": _head(row, categories), "target": target})
    for example in examples:
        example["length"] = max(len(text["input_ids"]) for text in example["texts"])
    return examples


def _rows(data, name: str, columns: Sequence[str], check: Callable = dict) -> list[dict]:
    rows = list(data or [])
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise InputError(f"{name}: row {number} lacks {', '.join(missing)}")
        try:
            check(row)
        except InputError as error:
            raise InputError(f"{name}: row {number}: {error}") from error
    return rows


def _head(row: dict, categories: Sequence[str]) -> int:
    if row["category"] == UNKNOWN:
        return -1
    if row["category"] not in categories:
        names = ", ".join([*categories, UNKNOWN])
        raise InputError(f"category: {row['category']!r} has no output; use one of {names}")
    return list(categories).index(row["category"])


def _stack(examples: Sequence[dict], tokenizer) -> dict[str, Tensor]:
    """One batch: labelled responses first, then the chosen, then the rejected ones, as `mixed_loss` takes them."""
    single = [example for example in examples if "safe" in example]
    double = [example for example in examples if "target" in example]
    batch = collate([e["texts"][0] for e in single + double] + [e["texts"][1] for e in double], tokenizer)
    batch["head"] = torch.tensor([e["head"] for e in single + double + double])
    batch["safe"] = torch.tensor([example["safe"] for example in single])
    batch["target"] = torch.tensor([example["target"] for example in double])
    return batch

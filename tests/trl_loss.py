"""What a reward trainer of TRL minimises on given pairs, and the scores it saw."""

import torch
from datasets import Dataset
from trl import RewardConfig

from srmir_lib.models.loading import load_tokenizer
from srmir_lib.reward_models.separate import base_classifier


def trainer_loss(kind, base_model, columns: dict, folder) -> tuple[float, torch.Tensor, torch.Tensor, dict]:
    """(loss, chosen scores, rejected scores, batch) of the first batch, which holds all pairs of `columns`."""
    arguments = RewardConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(columns["chosen_ids"]),
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        max_length=None,
    )
    trainer = kind(
        model=base_classifier(base_model),
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=load_tokenizer(base_model),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    with torch.no_grad():
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        chosen, rejected = trainer.model(**inputs).logits.squeeze(-1).chunk(2)
    return loss, chosen, rejected, batch

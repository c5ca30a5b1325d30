"""A causal language model trained from nothing on public text: for methods that need a causal trunk, without a hub."""

import tempfile
from pathlib import Path

from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from srmir_lib.artifacts import atomic_path, no_dataset_bars
from srmir_lib.errors import InputError
from srmir_lib.models.loading import pick_device
from srmir_lib.models.small import build_tokenizer, small_model
from srmir_lib.policies.callbacks import RunCallback


def train_text_model(
    conversations,
    folder: str | Path,
    steps: int,
    batch_size: int = 8,
    learning_rate: float = 2e-3,
    hidden_size: int = 192,
    layers: int = 4,
    vocabulary: int = 2048,
    row: int = 512,
    seed: int = 0,
    device: str = "auto",
) -> list[dict]:
    """A small causal model trained from nothing on `conversations` (a `Dataset`, column messages), saved in `folder`.

    TRL's `SFTTrainer` reads every token of them, packed into rows of `row` tokens; up to four times as many may be
    read later. Returns the logged steps (loss in nats a token). It knows the sound of these texts and little else.
    """
    if steps < 1 or len(conversations) == 0:
        raise InputError(f"text model: {steps} steps on {len(conversations)} conversations; both must be at least 1")
    texts = (message["content"] for row in conversations for message in row["messages"])
    tokenizer = build_tokenizer(texts, vocabulary, 4 * row)
    cuda = pick_device(device).type == "cuda"
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            scratch,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(20, steps // 5),
            max_length=row,
            packing=True,
            packing_strategy="wrapped",  # rows of equal length; the other strategy makes one long row of a batch
            seed=seed,
            use_cpu=not cuda,
            bf16=cuda,
            gradient_checkpointing=False,
            dataloader_pin_memory=cuda,
            logging_steps=max(1, steps // 20),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        with no_dataset_bars():
            trainer = SFTTrainer(
                model=small_model(tokenizer, hidden_size, layers, seed),
                args=arguments,
                train_dataset=conversations,
                processing_class=tokenizer,
                callbacks=[RunCallback("text model")],
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model).float()
    with atomic_path(folder) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return [row for row in trainer.state.log_history if "loss" in row]

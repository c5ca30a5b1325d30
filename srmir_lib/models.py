"""Load and run models: causal language models by id or folder, and batched generation.

Nothing here knows which model it is given. A missing model, tokenizer or chat template is an error with a fix, never a
silent fallback.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from srmir_lib.artifacts import InputError
from srmir_lib.templates import user_message

# "Loading weights" bars are over before they are read, and fill executed notebooks.
disable_progress_bar()


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA when there is one, else the CPU; anything else is taken at its word, and checked."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device: {device} was asked for, but there is no CUDA device; use device: cpu")
    return torch.device(device)


def load_tokenizer(model: str | Path):
    """Tokenizer of a model id or folder, padded on the left, with a pad token and a chat template (both required)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), padding_side="left")
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: no tokenizer there ({str(error).splitlines()[0]})") from error
    if tokenizer.chat_template is None:
        raise InputError(f"{model}: the tokenizer has no chat template; use an instruction-tuned model or add one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(model: str | Path, device: str = "auto", dtype: str = "float32", adapter: str | Path | None = None):
    """Causal language model by id or folder, optionally with a PEFT adapter on top, in evaluation mode."""
    try:
        policy = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: no causal language model there ({str(error).splitlines()[0]})") from error
    if adapter is not None:
        from peft import PeftModel

        try:
            policy = PeftModel.from_pretrained(policy, str(adapter))
        except (OSError, ValueError) as error:
            raise InputError(f"{adapter}: no PEFT adapter there ({str(error).splitlines()[0]})") from error
    return policy.to(pick_device(device)).eval()


def load_weights(model: str | Path, device: str = "auto"):
    """A base model as trainings hold it: bfloat16 on CUDA, single precision on a CPU.

    Hand it to `train_grpo` and to `ShadowRewardModels.load`: policy, reference and reward models share its weights.
    """
    return load_policy(model, device, "bfloat16" if pick_device(device).type == "cuda" else "float32")


@torch.no_grad()
def generate(
    policy,
    tokenizer,
    prompts: Sequence[str | list[dict]],
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    progress: str | None = None,
) -> list[str]:
    """One response per prompt, decoded without special tokens. `temperature=0` is greedy. Same seed, same answers.

    Prompts are user texts or conversations. Batches are sorted by length, so little is spent on padding.
    """
    texts = [render(tokenizer, user_message(p) if isinstance(p, str) else p) for p in prompts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = [""] * len(texts)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=progress is None, leave=False):
            rows = order[start : start + batch_size]
            batch = tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False)
            batch = batch.to(policy.device)
            output = policy.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
            completions = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, completion in zip(rows, completions, strict=True):
                answers[i] = completion.strip()
    return answers


def render(tokenizer, messages: list[dict]) -> str:
    """Conversation as the text the model sees, up to where its answer starts."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

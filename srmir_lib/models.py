"""Load and run models: causal language models by id or folder, and batched generation.

Nothing here knows which model it is given. A missing model, tokenizer or chat template is an error with a fix, never a
silent fallback.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList
from transformers.utils.logging import disable_progress_bar

from srmir_lib.artifacts import InputError
from srmir_lib.decoding import GumbelNoise, decode
from srmir_lib.parallel import side_by_side
from srmir_lib.templates import user_message

DECODED = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models that `generate` lets speak by `decode` (tested); others by transformers' own `generate`."""

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


def generate(
    policy,
    tokenizer,
    prompts: Sequence[str | list[dict]],
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    progress: str | None = None,
    until: str = "",
) -> list[str]:
    """One response per prompt, decoded without special tokens. `temperature=0` is greedy. Same seed, same answers.
    With `until` a response also ends with the first token that holds this text; what follows is not wanted.

    Prompts are user texts or conversations. Batches are sorted by length: little is spent on padding; what is asked
    several times is read once. Each batch has random numbers of its own; on a CPU they run side by side, a core each
    (an activated LoRA or a learned prompt: in turn).
    """
    texts = [render(tokenizer, user_message(p) if isinstance(p, str) else p) for p in prompts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shape = {"return_tensors": "pt", "padding": True, "add_special_tokens": False}
    different = [list(dict.fromkeys(texts[i] for i in rows)) for rows in batches]
    tokens = [tokenizer(once, **shape) for once in different]
    places = [torch.tensor([once.index(texts[i]) for i in rows]) for once, rows in zip(different, batches, strict=True)]
    config = policy.active_peft_config if isinstance(policy, PeftModel) else None
    only_peft = config and (config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None))
    end = policy.generation_config.eos_token_id  # a number, several, or none
    ends = [] if end is None else torch.as_tensor(end).view(-1).tolist()
    ends += [number for token, number in tokenizer.get_vocab().items() if until and until in token]
    by_us = not only_peft and policy.config.model_type in DECODED
    if config and not only_peft:
        policy = policy.get_base_model()  # its layers hold the adapter; the `generate` of PEFT is not for two threads

    def answer(number: int) -> torch.Tensor:
        batch, at = tokens[number].to(policy.device), places[number].to(policy.device)
        ids, mask, pad = batch["input_ids"], batch["attention_mask"], tokenizer.pad_token_id
        noise = GumbelNoise(temperature, f"{seed}, {number}", policy.device) if temperature > 0 else None
        if by_us:
            return decode(policy, ids, mask, at, max_new_tokens, ends, pad, noise)
        output = policy.generate(
            input_ids=ids[at],
            attention_mask=mask[at],
            max_new_tokens=max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=pad,
            do_sample=False,
            repetition_penalty=1.0,  # a model's own setting would bend what it says
            logits_processor=LogitsProcessorList([noise] if noise else []),
        )
        return output[:, ids.shape[1] :]

    jobs = {number: partial(answer, number) for number in range(len(batches))}
    answers = [""] * len(texts)
    found = (
        {number: job() for number, job in jobs.items()} if only_peft else side_by_side(jobs, policy.device, progress)
    )
    for number, said in found.items():
        for i, text in zip(batches[number], tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
    return answers


def render(tokenizer, messages: list[dict]) -> str:
    """Conversation as the text the model sees, up to where its answer starts."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

"""Batched generation: a causal language model answers any number of prompts, the same seed, the same answers."""

import random
from collections.abc import Sequence
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils.logging import disable_progress_bar

from srmir_lib.conversations import render, rendered_ids
from srmir_lib.errors import InputError
from srmir_lib.models.batching import padded
from srmir_lib.models.decoding import DECODED, decode
from srmir_lib.models.kinds import end_problem
from srmir_lib.models.kv_cache import numbers_a_token
from srmir_lib.models.parallel import run_in_threads

CPU_CACHE = 1.5e9
"""Bytes of keys and values that a batch may take on a CPU, where as many batches as cores run side by side."""


class GumbelNoise(LogitsProcessor):
    """Noise that makes the largest logit a sample: argmax(logit / temperature + Gumbel noise) is distributed as the
    softmax (Gumbel 1954; Maddison et al. 2014, section 2). Its random numbers are its own: what torch draws by itself
    comes from one generator for all threads.
    """

    def __init__(self, temperature: float, seed: str, device: torch.device):
        """`seed`: any text; the same one, the same noise."""
        self.temperature = temperature
        self.generator = torch.Generator(device).manual_seed(random.Random(seed).getrandbits(63))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, logits of the next token (rows, vocabulary), divided by the temperature, with noise."""
        return self.add(scores, torch.arange(len(scores), device=scores.device), len(scores))

    def add(self, scores: Tensor, rows: Tensor, count: int) -> Tensor:
        """The same for some `rows` of a batch of `count`: what others draw does not depend on which are left."""
        noise = scores.new_empty(count, scores.shape[1]).exponential_(generator=self.generator)
        return scores / self.temperature - noise[rows].log_()


# "Loading weights" bars are over before they are read, and fill executed notebooks.
disable_progress_bar()


def end_tokens(tokenizer, generation_config=None) -> list[int]:
    """Token ids that end an answer, the turn's own end first: the special token that the chat template puts behind an
    answer, the tokenizer's end token, and those of the generation configuration (they need not be the same)."""
    answer = "Yes, that is all."
    whole = render(tokenizer, ["What is it?"], [answer])
    behind = rendered_ids(tokenizer, [text.partition(answer)[2] for text in whole])[0]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [token for token in behind if token in special][:1]
    known = getattr(generation_config, "eos_token_id", None)  # a number, several, or none
    ends += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends += [] if known is None else torch.as_tensor(known).view(-1).tolist()
    return list(dict.fromkeys(ends))


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
    beginning: str | Sequence[str] = "",
) -> list[str]:
    """One response per prompt, decoded without special tokens. `temperature=0` is greedy. Same seed, same answers.
    A response ends at the first of `end_tokens`, or with `until` at the first token that holds this text; what follows
    is not wanted. A model that knows no end is an `InputError`. `beginning`: words that every response has to begin
    with, or each with its own; the model goes on from there.

    Prompts are user texts or conversations. Batches are sorted by length: little is spent on padding; what is asked
    several times is read once. Each batch has random numbers of its own; on a CPU they run side by side, a core each
    (an activated LoRA or a learned prompt: in turn), and are smaller where keys and values would take more than
    `CPU_CACHE`.
    """
    beginnings = [beginning] * len(prompts) if isinstance(beginning, str) else beginning
    texts = [text + words for text, words in zip(render(tokenizer, prompts), beginnings, strict=True)]
    begun = rendered_ids(tokenizer, beginnings)
    read = dict(zip(dict.fromkeys(texts), rendered_ids(tokenizer, list(dict.fromkeys(texts))), strict=True))
    if policy.device.type == "cpu" and (a_token := numbers_a_token(policy.config)):
        tokens_a_row = max(map(len, read.values()), default=0) + max_new_tokens
        number = policy.get_input_embeddings().weight.element_size()
        batch_size = max(1, min(batch_size, int(CPU_CACHE / (tokens_a_row * a_token * number))))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    different = [list(dict.fromkeys(texts[i] for i in rows)) for rows in batches]
    tokens = [[read[text] for text in once] for once in different]
    places = [torch.tensor([once.index(texts[i]) for i in rows]) for once, rows in zip(different, batches, strict=True)]
    config = policy.active_peft_config if isinstance(policy, PeftModel) else None
    only_peft = config and (config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None))
    ends = end_tokens(tokenizer, policy.generation_config)
    ends += [number for token, number in tokenizer.get_vocab().items() if until and until in token]
    if problem := end_problem(ends):
        raise InputError(problem)
    by_us = not only_peft and policy.config.model_type in DECODED
    if config and not only_peft:
        policy = policy.get_base_model()  # its layers hold the adapter; the `generate` of PEFT is not for two threads

    def answer(number: int) -> torch.Tensor:
        pad, at = tokenizer.pad_token_id, places[number].to(policy.device)
        batch = padded(tokens[number], policy.device, pad, left=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        noise = GumbelNoise(temperature, f"{seed}, {number}", policy.device) if temperature > 0 else None
        if by_us:
            return decode(policy, ids, mask, at, max_new_tokens, ends, pad, noise)
        output = policy.generate(
            input_ids=ids[at],
            attention_mask=mask[at],
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=pad,
            do_sample=False,
            repetition_penalty=1.0,  # a model's own setting would bend what it says
            logits_processor=LogitsProcessorList([noise] if noise else []),
        )
        return output[:, ids.shape[1] :]

    jobs = {number: partial(answer, number) for number in range(len(batches))}
    answers = [""] * len(texts)
    found = (
        {number: job() for number, job in jobs.items()} if only_peft else run_in_threads(jobs, policy.device, progress)
    )
    for number, said in found.items():
        # decoded with its beginning: a token's space depends on what stands before it
        whole = [begun[i] + row for i, row in zip(batches[number], said.tolist(), strict=True)]
        for i, text in zip(batches[number], tokenizer.batch_decode(whole, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
    return answers

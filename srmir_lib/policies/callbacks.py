"""What the trainers call back while a policy trains: is the text still language, are the numbers finite, how far is it.

A reward can be earned with babble. Two measures that no reward model sees: how likely the untrained model finds the
answers, and how much they repeat themselves.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from srmir_lib.errors import InputError
from srmir_lib.models.batching import padded
from srmir_lib.models.generation import end_tokens
from srmir_lib.papers.grpo import kl_estimate

LIKELIHOOD, BIGRAMS = "coherence/log_likelihood", "coherence/distinct_bigrams"
"""Keys in a history of GRPO under which `RewardCallback` logs them."""


def distinct_bigrams(text: str) -> float:
    """Share of distinct bigrams among all word bigrams, in (0, 1]; 1: nothing repeats (Li et al. 2016)."""
    words = text.split()
    bigrams = list(zip(words, words[1:], strict=False))
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def log_likelihood(
    model, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], micro_batch: int
) -> Tensor:
    """Mean log-probability a token, in nats, of each completion given its prompt under `model`; (N,) float32.

    Right padding with explicit positions: a row's value does not depend on the rows beside it. No completion is empty.
    """
    read = token_log_probabilities(model, prompt_ids, completion_ids, micro_batch)
    return torch.cat([(token * answer).sum(1) / answer.sum(1) for token, answer in read])


def divergence(
    policy,
    reference,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    micro_batch: int,
    temperature: float = 1.0,
) -> Tensor:
    """KL of two models in memory as GRPO estimates it (k3; Schulman 2020), a mean over each completion's tokens; (N,),
    nats a token. An estimate of KL[policy | reference] where the policy would say the completions at this
    `temperature`, by which TRL divides the logits of both."""
    ids = prompt_ids, completion_ids, micro_batch, temperature
    both = (token_log_probabilities(model, *ids) for model in (policy, reference))
    pairs = zip(*both, strict=True)
    return torch.cat([kl_estimate(own * on, other * on).sum(1) / on.sum(1) for (own, on), (other, _) in pairs])


@torch.no_grad()
def token_log_probabilities(
    model,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    micro_batch: int,
    temperature: float = 1.0,
) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches of (log-probability of each next token (n, T), which of them are the completion's (n, T), 1 or 0),
    in nats, float32 on the CPU, as a model says them at this `temperature`."""
    values = []
    for inputs, answer in answer_batches(prompt_ids, completion_ids, micro_batch, model.device):
        logits = model(**inputs).logits[:, :-1].float() / temperature
        token = logits.log_softmax(-1).gather(2, inputs["input_ids"][:, 1:].unsqueeze(2)).squeeze(2)
        values.append((token.cpu(), answer.float().cpu()))
    return values


def answer_batches(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], micro_batch: int, device: torch.device
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Micro-batches of (what a model reads of prompts with completions, which of its predictions (n, T) are of the
    completion's tokens, 1 or 0)."""
    for start in range(0, len(prompt_ids), micro_batch):
        rows = range(start, min(start + micro_batch, len(prompt_ids)))
        inputs = padded([[*prompt_ids[i], *completion_ids[i]] for i in rows], device)
        begin = torch.tensor([[len(prompt_ids[i])] for i in rows], device=device)
        yield inputs, (inputs["attention_mask"] * (inputs["position_ids"] >= begin))[:, 1:]


def answer_ids(
    model, tokenizer, prompts: Sequence, answers: Sequence[str], longest: int | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts (conversations), up to where the answer begins, and of answers, with the token that ends
    one; an answer of `longest` tokens was cut there, and has none."""
    asked = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
    end = end_tokens(tokenizer, model.generation_config)[:1]
    said = [tokenizer.encode(text, add_special_tokens=False) for text in answers]
    return asked, [ids if longest is not None and len(ids) >= longest else ids + end for ids in said]


class RunCallback(TrainerCallback):
    """Stops a run whose numbers are no longer finite, times every row of the history, shows progress.

    At a terminal or in a notebook a bar; elsewhere one line every tenth of the run.
    """

    def __init__(self, name: str):
        self.name, self.bar, self.tick = name, None, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.tick = time.perf_counter()
        if sys.stderr.isatty() or "ipykernel" in sys.modules:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, mininterval=1.0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        for key in ("loss", "grad_norm", "reward", "kl"):
            value = logs.get(key)
            if value is not None and not math.isfinite(value):
                raise InputError(
                    f"{self.name}: {key} is {value} at step {state.global_step}; nothing was saved; "
                    f"lower learning_rate, or look for extreme rewards"
                )
        now = time.perf_counter()
        # The row itself is in the trainer's state, which checkpoints carry, so a resumed run keeps its times.
        state.log_history[-1]["seconds"], self.tick = now - self.tick, now
        shown = {key: f"{logs[key]:.3f}" for key in ("reward", "kl") if logs.get(key) is not None}
        shown = shown or {"loss": f"{logs['loss']:.3f}"}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(state.global_step - self.bar.n)
        elif state.global_step % max(1, state.max_steps // 10) == 0:
            text = " ".join(f"{key} {value}" for key, value in shown.items())
            print(f"{self.name}: step {state.global_step}/{state.max_steps} {text}", file=sys.stderr, flush=True)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


def finite_rewards(reward_function, prompts: list, completions: list, **columns) -> list[float]:
    """What `reward_function` pays, one number a completion; one that is not finite is an `InputError` that names it."""
    rewards = list(map(float, reward_function(prompts=prompts, completions=completions, **columns)))
    for row, reward in enumerate(rewards):
        if not math.isfinite(reward):
            name = getattr(reward_function, "__name__", type(reward_function).__name__)
            raise InputError(f"{name}: the reward of row {row} is {reward}; it must be a finite number")
    return rewards


class RewardCallback(RunCallback):
    """`RunCallback` for GRPO that is its reward function as well: it refuses rewards that are no finite number, and
    logs how coherent the answers are that it rewards.

    Every step `BIGRAMS`; every `every` steps (0: never) `LIKELIHOOD`, the mean log-probability under the base model,
    which is the policy with its adapter switched off.
    """

    def __init__(self, name: str, reward_function, tokenizer, every: int, micro_batch: int):
        super().__init__(name)
        self.reward_function, self.tokenizer = reward_function, tokenizer
        self.every, self.micro_batch, self.model = every, micro_batch, None
        self.__name__ = getattr(reward_function, "__name__", type(reward_function).__name__)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.model = model

    def __call__(self, prompts: list, completions: list, **columns) -> list[float]:
        rewards = finite_rewards(self.reward_function, prompts, completions, **columns)
        texts = [completion[-1]["content"] for completion in completions]
        columns["log_metric"](BIGRAMS, sum(map(distinct_bigrams, texts)) / len(texts))
        if self.every and columns["trainer_state"].global_step % self.every == 0:
            prompt_ids = [
                self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
                for prompt in prompts
            ]
            with self.model.disable_adapter():
                values = log_likelihood(self.model, prompt_ids, columns["completion_ids"], self.micro_batch)
            columns["log_metric"](LIKELIHOOD, values.mean().item())
        return rewards

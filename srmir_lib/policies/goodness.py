"""What a policy is truly worth while it trains, beside how far it has gone from its reference: goodness against KL.

A reward is a proxy: what it buys is seen where the truth is at hand, and against the distance that was paid for it,
since methods move at different speeds (Gao et al. 2023, arXiv 2210.10760). Nothing here is ever trained on.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from transformers import TrainerCallback
from trl.trainer.utils import use_adapter

from srmir_lib.artifacts import digest
from srmir_lib.errors import InputError
from srmir_lib.models.generation import generate
from srmir_lib.policies.callbacks import answer_batches, answer_ids
from srmir_lib.settings.policies import WatchedGRPO

HARMFUL, HARMLESS, BALANCED, KL = (f"goodness/{name}" for name in ("harmful", "harmless", "balanced", "kl"))
"""Keys in a history of GRPO under which `GoodnessCallback` writes."""

KINDS = {"harmful": HARMFUL, "lookalike": HARMLESS}


class GoodnessCallback(TrainerCallback):
    """Lets the policy answer the same `prompts` (rows of prompt, a conversation, and kind, harmful or lookalike) before
    the first update, before every further `every` updates and before the last, with the same `sampling` of `generate`.

    The row of such an update says what the policy was worth that began it, the one whose answers and reward the row
    has: `HARMFUL` and `HARMLESS`, the means over the prompts of a kind of `worth(prompts, texts)`, values in [0, 1];
    `BALANCED`, the mean of both; and under a KL penalty `KL` (`mean_divergence` on these answers). Its `seconds` are
    without the look. No random number of the training is drawn, so the policy is the one that it would be without.
    """

    def __init__(self, worth: Callable, tokenizer, prompts: Sequence[Mapping], every: int, **sampling):
        self.worth, self.tokenizer, self.every, self.sampling = worth, tokenizer, every, sampling
        self.asked, self.kinds = [row["prompt"] for row in prompts], np.array([row["kind"] for row in prompts])
        told = digest([self.asked, self.kinds.tolist(), every, sampling], sort_keys=True)
        self.fingerprint = f"goodness {told} {worth.fingerprint}"
        self.found: dict[str, float] = {}
        self.spent = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.found = {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps - 1:
            started, training = time.perf_counter(), model.training
            self.found = self._look(model.eval(), args)
            model.train(training)
            self.spent = time.perf_counter() - started

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.found and "loss" in (logs or {}):
            row = state.log_history[-1]  # which checkpoints carry, so a resumed run keeps it
            row |= self.found | {"seconds": row["seconds"] - self.spent}
            self.found = {}

    def _look(self, policy, args) -> dict[str, float]:
        said = generate(policy, self.tokenizer, self.asked, **self.sampling)
        worth = np.asarray(self.worth(self.asked, said), dtype=float)
        found = {key: float(worth[self.kinds == kind].mean()) for kind, key in KINDS.items()}
        found[BALANCED] = (found[HARMFUL] + found[HARMLESS]) / 2
        if args.beta:  # else the trainer holds no reference
            ids = answer_ids(policy, self.tokenizer, self.asked, said, self.sampling["max_new_tokens"])
            found[KL] = mean_divergence(policy, *ids, args.per_device_train_batch_size)
        return found


@torch.no_grad()
def mean_divergence(
    policy, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], micro_batch: int
) -> float:
    """KL[policy | reference] at the tokens of completions, their mean, nats a token. At each token it is the sum over
    the vocabulary, not an estimate from the one that was drawn: a few dozen answers are enough.

    `policy`: a PEFT model; its reference is what the trainer's is, the adapter `ref` it began with, else no adapter.
    """
    reference, total, count = "ref" if "ref" in policy.peft_config else None, 0.0, 0.0
    for inputs, answer in answer_batches(prompt_ids, completion_ids, micro_batch, policy.device):
        own = policy(**inputs).logits[:, :-1].float().log_softmax(-1)
        with use_adapter(policy, reference):
            other = policy(**inputs).logits[:, :-1].float().log_softmax(-1)
        total += ((own.exp() * (own - other)).sum(-1) * answer).sum().item()
        count += answer.sum().item()
    return total / count


def fixed_prompts(prompts: Iterable[Mapping], count: int, seed: int) -> list[dict]:
    """Half of `count` prompts of each of `KINDS`, drawn with the `seed` from rows of prompt and kind, or as many of
    both as the rarer kind has; that there are none of one is an `InputError`."""
    rows = [{"prompt": row["prompt"], "kind": row["kind"]} for row in prompts]
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    each = min(count // 2, *map(len, kinds.values()))
    if not each:
        found = ", ".join(f"{len(own)} {kind}" for kind, own in kinds.items())
        raise InputError(f"goodness: validation prompts are {found}; it needs both kinds, or write goodness_every: 0")
    draw = random.Random(seed)
    return [row for own in kinds.values() for row in draw.sample(own, each)]


def callbacks(
    worth: Callable | None, tokenizer, prompts: Iterable[Mapping], settings: WatchedGRPO, **sampling
) -> list[GoodnessCallback]:
    """The callback for `train_grpo` on `fixed_prompts`; none where nobody knows what answers are worth (`worth` None),
    or where `settings` say never. `sampling`: of `generate`, its seed among it, which draws the prompts too."""
    if worth is None or not settings.goodness_every:
        return []
    asked = fixed_prompts(prompts, settings.goodness_prompts, sampling["seed"])
    return [GoodnessCallback(worth, tokenizer, asked, settings.goodness_every, **sampling)]

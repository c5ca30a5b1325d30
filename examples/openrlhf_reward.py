"""Shadow reward models as OpenRLHF's custom reward function.

Pass this file as `--reward.remote_url` (older versions: `--remote_rm_url`) and name the column that holds each prompt's
category with `--data.label_key` (`--label_key`). Two variables of the environment say where things are: SRMIR_MODELS, a
folder shadow_rms with its calibration.json, and SRMIR_POLICY, the policy, whose chat template is taken off the prompts
again, so that system messages and earlier turns are read as what they are (a prompt without any template is the text of
a user).
"""

import os
from threading import Lock

import torch

from srmir_lib.conversations import for_each, read_prompt
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.taxonomy import UNKNOWN

reward = RewardFunction(ShadowRewardModels.load(os.environ["SRMIR_MODELS"]), "categorized", router="label")
tokenizer = load_tokenizer(os.environ["SRMIR_POLICY"])
lock = Lock()  # OpenRLHF calls from many threads, and the models are not made for that


def reward_func(queries, prompts, labels, **options):
    """`queries`: prompts with their responses, special tokens included; `labels`: categories, "" for unknown ones."""
    asked = for_each(lambda prompt: read_prompt(tokenizer, prompt), prompts)
    texts = [query.split(prompt, 1)[1] for query, prompt in zip(queries, prompts, strict=True)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    responses = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    with lock:
        rewards = torch.tensor(reward(asked, responses, category=[label or UNKNOWN for label in labels]))
    return {"rewards": rewards, "scores": rewards.sigmoid(), "extra_logs": {"safety": rewards}}

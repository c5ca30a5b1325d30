"""Shadow reward models as verl's custom reward function.

Set `reward.custom_reward_function.path` (older versions: `custom_reward_function.path`) to this file. verl passes on a
row's `reward_model.ground_truth`, here the prompt's category, and its `extra_info`, which must hold the prompt as
`prompt`: the row's messages, the text of a user, or a conversation in the policy's chat template. SRMIR_MODELS in the
environment names a folder shadow_rms with its calibration.json, SRMIR_POLICY the policy, whose template is taken off
such a prompt again. With the reward manager "batch" the function to name is `compute_scores`: one call a batch is many
times faster than one a response.
"""

import os
from threading import Lock

from srmir_lib.conversations import for_each, read_prompt
from srmir_lib.models.loading import load_tokenizer
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.taxonomy import UNKNOWN

reward = RewardFunction(ShadowRewardModels.load(os.environ["SRMIR_MODELS"]), "categorized", router="label")
tokenizer = load_tokenizer(os.environ["SRMIR_POLICY"])
lock = Lock()  # verl calls from many threads, and the models are not made for that


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **options):
    """The reward of one response, higher is better."""
    return compute_scores([data_source], [solution_str], [ground_truth], [extra_info])[0]


def compute_scores(data_sources, solution_strs, ground_truths, extra_infos, **options):
    """The rewards of a batch of responses; a category of "" or None is unknown."""
    prompts = for_each(lambda extra: read_prompt(tokenizer, extra["prompt"]), extra_infos)
    with lock:
        return reward(prompts, list(solution_strs), category=[truth or UNKNOWN for truth in ground_truths])

"""What 05's variant `refreshed` is paid by: reward models that are trained again as 02 trained those it begins with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.policies.refresh import RefreshedReward
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.reward_models.calibration import calibration_set
from srmir_lib.reward_models.config import load_settings, read_config
from srmir_lib.reward_models.fit import fit_objectives
from srmir_lib.reward_models.shadow import ShadowRewardModels, calibrate_sets
from srmir_lib.settings.policies import RefreshSettings


def refreshed_reward(
    reward: RewardFunction,
    before: Path,
    trunk: Trunk,
    demonstrations: Sequence[Mapping],
    preferences: Mapping,
    refresh: RefreshSettings,
    seed: int,
    **sampling,
) -> RefreshedReward:
    """`reward` for a training that refreshes it; its models are those of the folder `before`, on `trunk`.

    The new ones have the same settings, see the `preferences` of the split train with the policy's answers in place of
    the old ones (`RefreshedReward`), and are calibrated on the split validation, as the first were. `sampling`: of
    `generate`. A set on an encoder, or one that learned from margins, which new pairs lack, is an `InputError`.
    """
    if read_config(before)["design"] == "pooled" or load_settings(before).objective == "margin":
        raise InputError(f"refreshed: {before} takes an encoder or margins to be trained again; name another set")
    reference = calibration_set(preferences["validation"])

    def refit(pairs: list[dict], folder: Path) -> ShadowRewardModels:
        train, folders = {"train": Dataset.from_list(pairs)}, {"refreshed": folder}
        fit_objectives(before, trunk, train, {"refreshed": {}}, folders, seed)
        models = ShadowRewardModels.load(folder, trunk)
        calibrate_sets({"refreshed": models}, folders, *reference)
        return models

    how = trunk.tokenizer, demonstrations, preferences["train"], refresh, seed
    return RefreshedReward(reward, refit, *how, **sampling)

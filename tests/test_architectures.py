"""What 02, 03, A0, 04 and 05 do, in small and in this process, on the architectures that people have."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_models import write_model

from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.data import margins
from srmir_lib.data.router import PromptEncoder, fit_router
from srmir_lib.models.trunk import Trunk
from srmir_lib.policies.reward import RewardFunction
from srmir_lib.policies.training import train_dpo, train_grpo, train_sft
from srmir_lib.reward_models.fit import SetRun, fit_objectives, fit_sets
from srmir_lib.reward_models.shadow import ShadowRewardModels, calibrate_sets
from srmir_lib.settings.policies import DPOSettings, GRPOSettings, SFTSettings
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe

NAMES = ["insult", "privacy"]
ASKED = [
    user_message(f"please {verb} the {thing}") for verb in ("open", "help", "read") for thing in ("door", "letter")
]
OWN = {
    "lora_r": 2,
    "lora_alpha": 4,
    "micro_batch": 4,
    "device": "cpu",
    "seed": 0,
    "max_steps": 2,
    "learning_rate": 1e-2,
}
PROBE = SizedProbe(text="is this {category} ?")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "phi3", "mistral"])
def test_reward_models_margins_and_policies(kind, tmp_path):
    base = write_model(kind, tmp_path / kind)
    trunk, categories = Trunk.load(base, "cpu"), [NAMES[n % 2] for n in range(len(ASKED))]
    rows = {"prompt": ASKED, "category": categories}
    pairs = rows | {"chosen": [assistant_message("no .")] * 6, "rejected": [assistant_message("yes , so be it .")] * 6}
    pairs = Dataset.from_dict(pairs | {"origin": ["policy"] * 6})

    settings = RewardSettings(
        max_steps=12, batch_size=2, learning_rate=1e-2, lora_rank=2, lora_alpha=4, max_length=64, probe=PROBE
    )
    fit_sets({"set": SetRun(tmp_path / "set", NAMES, settings)}, trunk, {"train": pairs})
    models = ShadowRewardModels.load(tmp_path / "set", trunk)
    both = [*ASKED, *ASKED], [*pairs["chosen"], *pairs["rejected"]]
    calibrate_sets({"set": models}, {"set": tmp_path / "set"}, *both)
    scores = models.score(*both)
    assert scores.shape == (12, 2) and scores.isfinite().all()
    better, worse = scores.gather(1, (torch.arange(12) % 2).unsqueeze(1)).view(
        2, 6
    )  # each by the model of its category
    assert (better > worse).all(), "a dozen updates on one and the same pair of answers teach it"

    how = trunk.model, trunk.tokenizer
    direction = margins.estimate_direction(*how, ASKED, pairs["rejected"], margins.REFUSALS)
    margin = margins.annotate(*how, pairs, direction)
    assert margin.isfinite().all()
    objectives = {"margin": {"objective": "margin"}, "pcrm": {"objective": "pcrm_cosine", "limit": [8.0, 0.001, -6.0]}}
    where = {name: tmp_path / name for name in objectives}
    fit_objectives(tmp_path / "set", trunk, {"train": pairs.add_column("margin", margin.tolist())}, objectives, where)
    assert all(ShadowRewardModels.load(folder, trunk).score(*both).isfinite().all() for folder in where.values())

    demonstrations = Dataset.from_dict({"prompt": ASKED, "completion": pairs["chosen"]})
    begun = train_sft(base, demonstrations, tmp_path / "start", SFTSettings(batch_size=4, **OWN))
    train_dpo(base, pairs, tmp_path / "dpo", DPOSettings(batch_size=4, **OWN), start=tmp_path / "start")
    grpo = GRPOSettings(
        prompts_per_step=2, num_generations=4, max_completion_length=6, monitor_every=1, checkpoint_every=0, **OWN
    )
    folds = {"train": Dataset.from_dict(rows), "validation": Dataset.from_dict(rows)}
    router = fit_router(folds, PromptEncoder(base_model=str(base)), NAMES, trunk)
    for strategy, rest in {"linear": (), "categorized": (router,)}.items():
        reward = RewardFunction(models, strategy, *rest)
        where = tmp_path / strategy
        history = train_grpo(base, folds["train"], reward, where, grpo, model=trunk.model, start=tmp_path / "start")
        assert len(history) == len(begun) == 2 and all(row["reward"] == row["reward"] for row in history)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("start", "dpo")]
    assert all(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0] if "lora_B" in key)

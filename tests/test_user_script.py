"""The README's own TRL script: a trained set of reward models as `reward_funcs`, in any GRPO training."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from fit_set import fit_set

from srmir_lib.artifacts import save_dataset
from srmir_lib.conversations import assistant_message, user_message
from srmir_lib.reward_models.calibration import Calibration, calibration_set
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.reward_training import RewardSettings

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = ["insult", "privacy"]


def user_script() -> str:
    """The fenced block of the README that follows the mark `<!-- user-script -->`."""
    found = re.search(r"<!-- user-script -->\s*```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, "README.md has no python block marked <!-- user-script -->"
    return found.group(1)


@pytest.fixture(scope="module")
def outputs(tiny_model, tmp_path_factory) -> Path:
    """What 01 and 02 leave, in small: base model, prompts, and two shadow reward models."""
    folder = tmp_path_factory.mktemp("user") / "outputs" / "lab"
    pairs = Dataset.from_list(
        [
            {
                "prompt": user_message(f"open the door {i}"),
                "chosen": assistant_message("I can not answer that"),
                "rejected": assistant_message("first get ready"),
                "category": CATEGORIES[i % 2],
                "origin": "policy",
            }
            for i in range(8)
        ]
    )
    base = folder / "01_data" / "base_model"
    shutil.copytree(tiny_model, base)
    save_dataset(DatasetDict(train=pairs.select_columns(["prompt", "category"])), folder / "01_data" / "prompts")
    models = folder / "02_shadow_reward_models" / "shadow_rms"
    settings = RewardSettings(max_steps=2, batch_size=4, learning_rate=1e-3, lora_rank=4, lora_alpha=8, max_length=64)
    fit_set(base, {"train": pairs}, models, CATEGORIES, settings, design="separate")
    scores = ShadowRewardModels.load(models, "cpu").score(*calibration_set(pairs))
    Calibration.fit(scores, CATEGORIES).save(models / "calibration.json")
    return folder


def test_the_script_is_short_and_trains_a_policy(outputs):
    script = user_script()
    lines = [line for line in script.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 20, "about fifteen lines were promised"
    assert 'reward_funcs=[RewardFunction(models, "categorized"' in script
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=outputs.parents[1], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "reward/insult" in run.stdout and "reward/privacy" in run.stdout, "rewards are logged by category"
    saved = [path for path in outputs.parents[1].rglob("*model.safetensors") if outputs not in path.parents]
    assert saved, "the script must save its policy, an adapter or a whole model"

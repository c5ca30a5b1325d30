"""Run by `test_processes.py` under torchrun, and in one process: trains and writes down what it saw."""

import json
import os
import shutil
import sys
from pathlib import Path

from datasets import Dataset
from safetensors.torch import save_file
from transformers import TrainerCallback

from srmir_lib.models.processes import processes
from srmir_lib.models.trunk import Trunk
from srmir_lib.policies.training import train_dpo, train_grpo, train_sft
from srmir_lib.reward_models.fit import SetRun, fit_sets
from srmir_lib.settings.policies import DPOSettings, GRPOSettings, SFTSettings
from srmir_lib.settings.reward_training import RewardSettings

WORDS = ["open", "the", "red", "door", "please", "help", "me", "no", "yes", "so"]
OWN = {"lora_r": 4, "lora_alpha": 8, "device": "cpu", "seed": 0, "learning_rate": 1e-2}


def say(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def texts(count: int, shift: int) -> list[str]:
    return [" ".join(WORDS[(n + shift * k) % len(WORDS)] for k in range(3)) for n in range(count)]


def worth(completion) -> float:
    """A reward that anybody can compute again: the share of the answer's letters that are an e."""
    text = completion[-1]["content"]
    return text.count("e") / max(len(text), 1)


class Payer:
    """Pays `worth`, and writes down what was paid for what in this process."""

    fingerprint = "letters"
    __name__ = "letters"

    def __init__(self, file: Path):
        self.file = file

    def __call__(self, prompts, completions, **columns) -> list[float]:
        rewards = [worth(completion) for completion in completions]
        with self.file.open("a") as file:
            file.write(json.dumps([[c[-1]["content"] for c in completions], rewards]) + "\n")
        return rewards


class Held(TrainerCallback):
    """Writes down the adapter that this process holds at the end."""

    fingerprint = "held"

    def __init__(self, file: Path):
        self.file = file

    def on_train_end(self, args, state, control, model=None, **kwargs):
        save_file({name: weight for name, weight in model.named_parameters() if "lora" in name}, self.file)


def main(base: str, folder: Path) -> None:
    rank, count = int(os.environ.get("RANK", "0")), processes()
    own = folder / f"rank-{rank}"
    own.mkdir(parents=True)
    asked = [say("user", text) for text in texts(16, 3)]
    pairs = {"prompt": asked, "chosen": [say("assistant", t) for t in texts(16, 7)]}
    pairs["rejected"] = [say("assistant", text) for text in texts(16, 1)]
    data = Dataset.from_dict(pairs)
    spread = {"micro_batch": 8 // count, "num_processes": count, "max_steps": 3} | OWN
    demonstrations = data.rename_column("chosen", "completion").remove_columns("rejected")
    told = {"ranks": count}
    told["sft"] = train_sft(base, demonstrations, own / "sft", SFTSettings(batch_size=8, **spread))
    told["dpo"] = train_dpo(base, data, own / "dpo", DPOSettings(batch_size=8, **spread), start=own / "sft")
    grpo = {"prompts_per_step": 4, "num_generations": 4, "max_completion_length": 6, "checkpoint_every": 0}
    settings = GRPOSettings(**spread | {"micro_batch": 4}, **grpo, monitor_every=0)
    grpo = base, data.select_columns("prompt"), Payer(own / "paid"), own / "grpo", settings
    told["grpo"] = train_grpo(*grpo, callbacks=[Held(own / "live.safetensors")])
    told["resumed"] = train_grpo(*grpo, resume=True, callbacks=[Held(own / "live.safetensors")]) == told["grpo"]
    table, trunk = data.add_column("category", ["insult", "crimes"] * 8), Trunk.load(base, "cpu")
    run = SetRun(
        own / "set", ["insult", "crimes"], RewardSettings(max_steps=3, learning_rate=1e-2, max_length=64), "separate"
    )
    told["rewards"] = fit_sets({"set": run}, trunk, {"train": table})["set"]["insult"]
    if rank:  # as after a kill, of which the first one's work alone is left
        shutil.rmtree(own / "set/insult")
    told["kept"] = fit_sets({"set": run}, trunk, {"train": table})["set"]["insult"] == told["rewards"]
    (own / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

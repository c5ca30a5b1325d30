"""Two processes train what one does: counted, and held against one process on the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_tiny_model
from datasets import Dataset
from processes_job import worth
from safetensors.torch import load_file

from srmir_lib.artifacts import sha256
from srmir_lib.errors import InputError
from srmir_lib.models.processes import Together, check_processes, processes
from srmir_lib.policies.training import train_grpo
from srmir_lib.settings.policies import GRPOSettings, SFTSettings

JOB = Path(__file__).with_name("processes_job.py")


def run(folder: Path, model: Path, count: int) -> list[dict]:
    """What each of `count` processes says of its trainings."""
    alone = [sys.executable, str(JOB)]
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), str(JOB)]
    here = {
        "PYTHONPATH": str(JOB.parents[1]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [*(alone if count == 1 else many), str(model), str(folder)]
    done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}/told.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, list[dict], dict]:
    folder = tmp_path_factory.mktemp("processes")
    model = write_tiny_model(folder / "model")
    return folder, run(folder / "two", model, 2), run(folder / "one", model, 1)[0]


def test_there_are_two_and_both_say_the_same(told):
    _, two, one = told
    assert [each["ranks"] for each in two] == [2, 2] and one["ranks"] == 1
    assert all(each["resumed"] for each in [*two, one]), "a finished training is taken from where the first put it"
    assert all(each["kept"] for each in [*two, one]), "all skip a reward model that the first has, or none does"


@pytest.mark.parametrize("training", ["sft", "dpo", "rewards"])
def test_losses_at_equal_global_batch_are_those_of_one_process(told, training):
    _, two, one = told
    losses = [row["loss"] for row in one[training]]
    assert len(losses) == 3 and len({round(loss, 6) for loss in losses}) == 3, "a loss that moves"
    for each in two:
        assert [row["loss"] for row in each[training]] == pytest.approx(losses, abs=1e-4)


def test_gathered_rewards_are_one_process_s_scores_of_the_same_completions(told):
    folder, two, _ = told
    files = [folder / f"two/rank-{rank}/paid" for rank in (0, 1)]
    paid = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert [len(rows) for rows in paid] == [3, 3], "each process pays its own share of every update"
    for step, shares in enumerate(zip(*paid, strict=True)):
        answers = [text for texts, _ in shares for text in texts]
        assert len(answers) == 16
        again = [worth([{"content": text}]) for text in answers]
        assert again == pytest.approx([reward for _, rewards in shares for reward in rewards])
        for each in two:
            assert each["grpo"][step]["reward"] == pytest.approx(sum(again) / 16, abs=1e-6)


def test_each_takes_a_copy_of_what_the_first_wrote(told):
    for name in ("sft", "dpo", "grpo"):
        first, second = (told[0] / f"two/rank-{rank}/{name}" for rank in (0, 1))
        assert sha256(first) == sha256(second)


@pytest.mark.parametrize("name", ["live.safetensors", "set/insult/adapter_model.safetensors"])
def test_weights_are_equal_on_both(told, name):
    """Of GRPO what each process held when it ended, of a reward model what each wrote for itself."""
    first, second = (load_file(told[0] / f"two/rank-{rank}/{name}") for rank in (0, 1))
    assert first.keys() == second.keys() and any("lora_B" in key for key in first)
    assert all(first[key].equal(second[key]) for key in first)
    assert any(first[key].any() for key in first if "lora_B" in key), "it has learned"


def test_alone_nothing_waits_and_a_wrong_number_is_one_line(tmp_path, monkeypatch):
    place = Together(tmp_path / "made", "key", on_cpu=True)
    place.once(lambda: place.folder.mkdir())
    place.keep()
    assert place.first and place.folder == place.own and processes() == 1
    with pytest.raises(InputError, match="num_processes: 2, but this runs in one process; `srmir run` starts"):
        check_processes(2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="but this runs in 4 processes"):
        check_processes(2)


def test_a_batch_that_cannot_be_shared_is_refused():
    own = {"max_steps": 1, "seed": 0, "num_processes": 3}
    with pytest.raises(InputError, match="micro_batch: 80 in each of 3 processes must divide batch_size = 80"):
        SFTSettings.checked(own | {"batch_size": 80})
    with pytest.raises(InputError, match="in each of 3 processes must divide prompts_per_step"):
        GRPOSettings.checked(own)


def test_a_server_is_an_address_and_needs_its_package(told):
    own = {"max_steps": 1, "seed": 0, "prompts_per_step": 10}
    for wrong in ("localhost:8000", "http://a b", "ftp://host"):
        with pytest.raises(InputError, match=f"vllm_server: {wrong!r} is no address; write one such as http"):
            GRPOSettings.checked(own | {"vllm_server": wrong})
    settings = GRPOSettings.checked(own | {"vllm_server": "http://localhost:8000", "device": "cpu"})
    folder = told[0]
    prompts = Dataset.from_dict({"prompt": ["open the door"]})
    with pytest.raises(InputError, match="the package vllm, which is not installed; make an environment with `pip ins"):
        train_grpo(folder / "model", prompts, lambda prompts, completions, **_: [0.0], folder / "policy", settings)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_configurations_are_accelerate_s(name):
    from accelerate.commands.config.config_args import load_config_from_file

    file = Path(__file__).parents[1] / f"params/accelerate/{name}.yaml"
    config = load_config_from_file(str(file))
    assert config.distributed_type == yaml.safe_load(file.read_text())["distributed_type"]
    assert config.num_processes == 8

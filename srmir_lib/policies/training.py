"""Train a policy with TRL's own trainers: supervised (SFT), direct preferences (DPO) and group-relative RL (GRPO).

Every policy is a LoRA adapter (Hu et al. 2022) on a frozen base model, saved as a PEFT folder with its `history.jsonl`.
With the adapter off the policy *is* the reference model, so no second copy of the weights is held; GRPO that goes on
from an earlier adapter has a copy of that adapter as its reference.

Departures from TRL 1.16's defaults: rewards and losses that are not finite stop the run (the trainer would go on);
prompts come in an order fixed by the seed, in one long epoch, so that a killed run can go on.
"""

import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from srmir_lib.artifacts import atomic_path, no_dataset_bars, read_json, sha256, write_json, write_jsonl
from srmir_lib.conversations import as_chat, for_each
from srmir_lib.data.preferences import PAIR, as_pairs
from srmir_lib.errors import InputError
from srmir_lib.models.generation import end_tokens
from srmir_lib.models.kinds import end_problem
from srmir_lib.models.loading import load_policy, load_tokenizer, pick_device, precision, share_weights
from srmir_lib.models.processes import Together, check_processes, sharded
from srmir_lib.policies.callbacks import RewardCallback, RunCallback, finite_rewards
from srmir_lib.policies.checkpoints import (
    MarkComplete,
    checkpoint_folder,
    checkpoints_of,
    finished_history,
    newest_complete,
    run_key,
)
from srmir_lib.policies.confidence_dpo import ConfidenceDPOTrainer
from srmir_lib.policies.pcrm_dpo import LimitedDPOTrainer
from srmir_lib.rows import read_jsonl
from srmir_lib.settings.policies import DPOSettings, GRPOSettings, SFTSettings

Settings = SFTSettings | DPOSettings | GRPOSettings


ANSWERS = ("completion", "chosen", "rejected")

IN_TRLS_WORDS = {"num_generations", "num_iterations", "max_completion_length", "temperature", "beta", "epsilon"}
IN_TRLS_WORDS |= {"scale_rewards", "loss_type", "use_bias_correction_kl"}
"""Settings of GRPO that the trainer's configuration has under the same name."""


def train_sft(
    base_model, demonstrations: Dataset, output_dir, settings: SFTSettings, resume: bool = False, start=None
) -> list[dict]:
    """Fine-tune on `demonstrations` (columns prompt, completion: conversations); the loss reads the completion only.

    Saves the adapter in `output_dir` and returns its history, one dict an update. `resume`: a finished adapter that
    these very settings, data and base model made is not made again. `start`: the folder of an adapter from which the
    training goes on.
    """
    columns = ("prompt", "completion")
    return _train(SFTTrainer, SFTConfig, base_model, demonstrations, columns, output_dir, settings, resume, start)


def train_dpo(
    base_model,
    preferences: Dataset,
    output_dir,
    settings: DPOSettings,
    resume: bool = False,
    start=None,
    readouts=None,
    reference=None,
) -> list[dict]:
    """Optimise preferences (rows of any form that `as_pair` reads) directly (Rafailov et al. 2023, eq. 7).

    The rest is as in `train_sft`, but a `start` is the reference as well, unless another adapter is: that in the folder
    `reference`. The history has `rewards/margins` and `rewards/accuracies`, the implicit reward's. With a column
    `limit`, the largest gap a pair should have, it is PCRM's direct form (`LimitedDPOTrainer`). With a column
    `confidence`, or with `readouts`, it is RBRM's: a confidence for each pair, or one for each `micro_batch` by the
    states that its forward pass makes (`ConfidenceDPOTrainer`). With `sft_weight` it is RPO: so many times the loss
    of `train_sft` on the chosen answers is added (Liu et al. 2024, arXiv 2405.16436; Pang et al. 2024, arXiv
    2404.19733), a mean over their tokens.
    """
    columns, kind, preferences = PAIR, DPOTrainer, as_pairs(preferences)
    trusted = readouts is not None or "confidence" in preferences.column_names
    if "limit" in preferences.column_names:
        if trusted:
            raise InputError("confidence: within limits all pairs are trusted alike; drop `limit`, or the confidence")
        if settings.sft_weight:
            raise InputError("sft_weight: within limits pairs are read swapped as well; set it to 0, or drop `limit`")
        columns, kind = (*columns, "limit"), LimitedDPOTrainer
    if trusted:
        columns = columns if readouts is not None else (*columns, "confidence")
        kind = partial(ConfidenceDPOTrainer, readouts=readouts)
    told = "" if readouts is None else f"read-outs {readouts.sha256}"
    if reference is not None:
        told += f"reference {_check_start(reference, settings, 'reference')}"
        kind = partial(_referring_to, kind, base_model, settings.device, reference)
    return _train(kind, DPOConfig, base_model, preferences, columns, output_dir, settings, resume, start, told)


def train_online_dpo(
    base_model,
    prompts: Dataset,
    reward_function: Callable,
    output_dir,
    settings: DPOSettings,
    max_new_tokens: int,
    temperature: float = 1.0,
    resume: bool = False,
    start=None,
    reference=None,
) -> list[dict]:
    """DPO on pairs that the policy samples anew in every update: of two answers to a prompt the one that earns more is
    chosen (Guo et al. 2024, arXiv 2402.04792; TRL's trainer).

    `prompts`: column prompt (conversations), `batch_size` of them an update; other columns go to the reward function,
    which is called as in `train_grpo`; a reward that is not finite is an `InputError`. `max_new_tokens`, `temperature`:
    of the sampling. The rest is as in `train_dpo`; the history has the implicit reward's `rewards/margins` and
    `objective/scores`, the mean reward.
    """
    columns = ("prompt", *(name for name in prompts.column_names if name != "prompt"))
    told = f"online {max_new_tokens} {temperature} {getattr(reward_function, 'fingerprint', '')}"
    paid = partial(finite_rewards, reward_function)  # the trainer would take what is no number for nothing
    kind = partial(OnlineDPOTrainer, reward_funcs=[paid])
    if reference is not None:
        told += f"reference {_check_start(reference, settings, 'reference')}"
        kind = partial(_referring_to, kind, base_model, settings.device, reference)
    config = partial(OnlineDPOConfig, max_new_tokens=max_new_tokens, temperature=temperature)
    return _train(kind, config, base_model, prompts, columns, output_dir, settings, resume, start, told)


def train_grpo(
    base_model,
    prompts: Dataset,
    reward_function: Callable | Sequence[Callable],
    output_dir,
    settings: GRPOSettings,
    resume: bool = False,
    model=None,
    start=None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict]:
    """Train on `prompts` (column prompt: a conversation, or a user's text, which becomes one; every other column goes
    to the reward function).

    Saves the adapter in `output_dir` and returns its history, one dict an update, in TRL's words: step, reward, kl and
    entropy (nats a token), completions/mean_length (tokens), num_tokens (so far); beside them seconds, coherence/…
    (`RewardCallback`), and what the reward function logs. `resume`: a finished adapter of the same settings,
    prompts, base model and reward `fingerprint` is not made again, and a killed run goes on from its newest complete
    checkpoint, to the same result. `model`: `base_model` if it is in memory (`load_policy`); the policy shares its
    weights, which are frozen. `start`: the folder of an adapter (of `train_sft`, say) from which the policy goes on;
    it is the reference then. Rewards or losses that are not finite are an `InputError`.

    Several reward functions: what each pays is normalised within its group before all are summed with equal weights,
    and the sums within the batch (TRL's `normalize_then_sum`; Liu et al. 2026, arXiv 2601.05242: GDPO). The history's
    reward is their mean; `scale_rewards` must be group. One that is a `TrainerCallback` is called back as well.

    `callbacks`: more that the trainer calls, such as a `GoodnessCallback`, each with a `fingerprint` of what it writes
    into the history; a finished adapter whose history lacks it is made again.
    """
    functions = list(reward_function) if isinstance(reward_function, Sequence) else [reward_function]
    if len(functions) > 1 and settings.scale_rewards != "group":
        raise InputError(f"scale_rewards: several rewards are scaled by group, not by {settings.scale_rewards}")
    check_processes(settings.num_processes)
    _check_columns(prompts, ("prompt",))
    if (chats := for_each(as_chat, prompts["prompt"])) != prompts["prompt"][:]:
        prompts = prompts.rename_column("prompt", "as given").add_column("prompt", chats).remove_columns("as given")
    begun = "" if start is None else _check_start(start, settings)
    reward_is = "".join(one.fingerprint for one in functions if "fingerprint" in dir(one))
    written = "".join(one.fingerprint for one in callbacks)
    key = run_key(base_model, prompts, settings.model_dump(), reward_is + begun + written)
    place = _together(output_dir, key, settings)
    if resume and (history := _finished(place)):
        return history
    place.once(partial(checkpoint_folder, place.folder, place.key, resume))
    name, checkpoints = place.folder.name, checkpoints_of(place.folder)
    tokenizer = load_tokenizer(base_model)
    completions = settings.prompts_per_step * settings.num_generations
    config = GRPOConfig(
        **_arguments(base_model, settings, checkpoints),
        gradient_accumulation_steps=completions // (settings.micro_batch * settings.num_processes),
        **settings.model_dump(include=IN_TRLS_WORDS),
        **_sampled_by(settings.vllm_server),
        multi_objective_aggregation="normalize_then_sum" if len(functions) > 1 else "sum_then_normalize",
        reward_weights=[1 / len(functions)] * len(functions),
        shuffle_dataset=False,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 500,
    )
    looks = [settings.monitor_every] + [0] * (len(functions) - 1)  # the text is the same for all: one look is enough
    rewards = [
        RewardCallback(name, one, tokenizer, every, settings.micro_batch)
        for one, every in zip(functions, looks, strict=True)
    ]
    alone = model is None or sharded()  # what is held in parts by many is nobody else's
    weights = load_policy(base_model, settings.device) if alone else share_weights(model)
    ends = end_tokens(tokenizer, weights.generation_config)
    if problem := end_problem(ends):
        raise InputError(f"{base_model}: {problem}")
    weights.generation_config.eos_token_id = ends
    if tokenizer.eos_token is None:  # the trainer takes it for one of the ends
        tokenizer.eos_token_id = ends[0]
    called = [one for one in functions if isinstance(one, TrainerCallback)]
    trainer = GRPOTrainer(
        **_policy(weights, settings, start),
        reward_funcs=rewards,
        args=config,
        train_dataset=prompts.select(prompt_order(len(prompts), settings)),
        processing_class=tokenizer,
        callbacks=[rewards[0], *called, *callbacks, MarkComplete()],
    )
    trainer.remove_callback(PrinterCallback)
    place.once(partial(newest_complete, checkpoints))  # which deletes those that are not whole
    try:
        trainer.train(resume_from_checkpoint=newest_complete(checkpoints))
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise InputError(
            f"{name}: the policy broke down after step {trainer.state.global_step} "
            "(its probabilities are not finite); nothing was saved; lower learning_rate"
        ) from error
    return _save(trainer, place, checkpoints)


def _sampled_by(server: str) -> dict:
    """What GRPO's configuration is told of the vLLM server that samples."""
    if not server:
        return {}
    if find_spec("vllm") is None:
        fix = "make an environment with `pip install -c constraints-vllm.txt -e . 'trl[vllm]'`, or leave it empty"
        raise InputError(f"vllm_server: {server} is spoken to through the package vllm, which is not installed; {fix}")
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server}


def prompt_order(count: int, settings: GRPOSettings) -> np.ndarray:
    """Which prompt comes when: seeded permutations one after another, so all are seen before one is seen again.

    The trainer then walks through one long epoch: within an epoch it can resume exactly, across epochs it cannot.
    """
    needed = settings.prompts_per_step * math.ceil(settings.max_steps / settings.num_iterations)
    rng = np.random.default_rng(settings.seed)
    return np.concatenate([rng.permutation(count) for _ in range(math.ceil(needed / count))])[:needed]


def _referring_to(kind: Callable, base_model, device: str, reference, **rest) -> DPOTrainer:
    """A trainer whose reference is an adapter of its own, not the policy that it begins with."""
    held = load_policy(base_model, device, adapter=reference).get_base_model()  # its layers hold the adapter
    return kind(ref_model=held, **rest)


def _train(
    trainer_class, config_class, base_model, dataset, columns, output_dir, settings, resume, start, told=""
) -> list[dict]:
    """`told`: what the trainer is told beside the settings, for the key of the run."""
    check_processes(settings.num_processes)
    _check_columns(dataset, columns)
    begun = "" if start is None else _check_start(start, settings)
    key = run_key(base_model, dataset, settings.model_dump(), begun + told)
    place = _together(output_dir, key, settings)
    if resume and (history := _finished(place)):
        return history
    tokenizer = load_tokenizer(base_model)
    dataset = dataset.select_columns(list(columns))
    if answers := [name for name in columns if name in ANSWERS]:
        _check_conversations(tokenizer, dataset, answers, settings.max_length)
    place.once(partial(checkpoint_folder, place.folder, place.key, resume=False))
    checkpoints = checkpoints_of(place.folder)
    config = config_class(
        **_arguments(base_model, settings, checkpoints),
        gradient_accumulation_steps=settings.batch_size // (settings.micro_batch * settings.num_processes),
        max_length=settings.max_length,
        save_strategy="no",
        **_dpo_loss(settings),
    )
    with no_dataset_bars():  # one bar for a training, its own, not five for reading the data
        weights = load_policy(base_model, settings.device)
        trainer = trainer_class(
            **_policy(weights, settings, start),
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[RunCallback(place.folder.name)],
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return _save(trainer, place, checkpoints)


def _arguments(base_model, settings: Settings, folder: Path) -> dict:
    """Arguments that all three trainers share, with TRL's defaults undone that do not fit a CPU."""
    cuda = pick_device(settings.device).type == "cuda"
    return {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": settings.micro_batch,
        "seed": settings.seed,
        "use_cpu": not cuda,
        "bf16": precision(base_model, settings.device) == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "dataloader_pin_memory": cuda,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the trainer would replace a NaN loss by the running mean
        "disable_tqdm": True,
        "report_to": "none",
    }


def _dpo_loss(settings: Settings) -> dict:
    """What DPO's configuration alone is told."""
    if not isinstance(settings, DPOSettings):
        return {}
    weighted = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.sft_weight]}
    return {"beta": settings.beta} | (weighted if settings.sft_weight else {})


def _policy(weights, settings: Settings, start) -> dict:
    """What a trainer takes for its policy: a model and the shape of a new adapter, or one with that of `start`."""
    if start is not None:
        return {"model": PeftModel.from_pretrained(weights, str(start), is_trainable=True)}
    shape = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha}
    return {"model": weights, "peft_config": LoraConfig(**shape, target_modules="all-linear", task_type="CAUSAL_LM")}


def _check_start(start, settings: Settings, name: str = "start") -> str:
    """The hash of the adapter to go on from, or to refer to; one of another rank or scale is an `InputError`."""
    if not Path(start, "adapter_config.json").is_file():
        raise InputError(f"{name}: {start} is no PEFT adapter folder (no adapter_config.json); give one of train_sft")
    config = read_json(Path(start, "adapter_config.json"))
    found, wanted = (config["r"], config["lora_alpha"]), (settings.lora_r, settings.lora_alpha)
    if found != wanted:
        differs = f"{start} has lora_r, lora_alpha = {found}, the settings say {wanted}"
        raise InputError(f"{name}: {differs}; make them agree")
    return sha256(Path(start, "adapter_model.safetensors"))


def _check_columns(dataset: Dataset, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in dataset.column_names]
    if missing or len(dataset) == 0:
        raise InputError(f"training data: {len(dataset)} rows; missing columns: {', '.join(missing) or 'none'}")


def _check_conversations(tokenizer, dataset: Dataset, answers: list[str], max_length: int) -> None:
    """An answer must end with a token that ends generation, or the policy never learns to stop; few may be cut."""
    longer, ends = 0, end_tokens(tokenizer)
    for row, example in enumerate(dataset):
        for name in answers:
            ids = tokenizer.apply_chat_template(example["prompt"] + example[name], return_dict=False)
            if row == 0 and not {*ends} & {*ids[-3:]}:
                raise InputError(
                    f"chat template: a conversation ends with {tokenizer.decode(ids[-3:])!r}, without the end token "
                    f"{tokenizer.eos_token!r} or any special token; let the template end a turn with one"
                )
            longer += len(ids) > max_length
    share = longer / (len(dataset) * len(answers))
    if share > 0.1:
        raise InputError(f"max_length: {longer} conversations ({share:.0%}) exceed {max_length} tokens; raise it")
    if longer:
        warnings.warn(f"{longer} conversations are longer than {max_length} tokens and are cut", stacklevel=3)


def _together(output_dir, key: str, settings: Settings) -> Together:
    return Together(output_dir, key, pick_device(settings.device).type == "cpu")


def _finished(place: Together) -> list[dict] | None:
    """The history of a training that these settings have made already, of which each process has a copy then."""
    if history := finished_history(place.folder, place.key):
        place.keep()
    return history


def _save(trainer, place: Together, checkpoints: Path) -> list[dict]:
    """Save adapter, history and key in one atomic step, and only then delete the checkpoints (they hold pickles)."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    history = [{name: value for name, value in row.items() if value is not None} for row in rows]
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # of all processes: each may hold a part

    def write() -> None:
        with atomic_path(place.folder) as fresh:
            trainer.model.save_pretrained(str(fresh), selected_adapters=["default"], state_dict=weights)
            write_jsonl(fresh / "history.jsonl", history)
            write_json(fresh / "training.json", {"key": place.key})
        shutil.rmtree(checkpoints, ignore_errors=True)

    place.once(write)
    place.keep()
    return history if place.first else read_jsonl(place.own / "history.jsonl")

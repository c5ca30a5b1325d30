"""What a policy's training is told (A0, 04, 05, A7): SFT, DPO and GRPO, in TRL's words."""

import re
from typing import Literal

from pydantic import model_validator

from srmir_lib.settings.base import PROCESSES, Device, NotebookSettings, Settings, told

FROM_01 = "model id or folder; empty: the one that 01 made"
SHOW = "lab text is free of content; false for real models, whose answers are then redacted"


class Refereed(NotebookSettings):
    """Of a notebook whose policies' answers a referee rules on."""

    facts: str = told("01's file with the truth about the town, for the exact referee; empty: another one")
    classifier: str = told("without facts: folder of 01_data that tells harm in real answers; empty: refusal phrases")

    @model_validator(mode="after")
    def _one_truth(self):
        if self.facts and self.classifier:
            raise ValueError(f"classifier: {self.classifier!r} is not read beside facts; leave one of them empty")
        return self


class Adapter(Settings):
    """A LoRA adapter and how it learns (Hu et al. 2022)."""

    learning_rate: float = told("of the adapter, at the first update", 1.5e-3, gt=0)
    lr_scheduler: Literal["linear", "cosine", "constant"] = told("how it falls over the run", "linear")
    micro_batch: int = told(
        "sequences in one forward pass; changes memory, not the result (but for A2's `rerank_batch`)", 80, gt=0
    )
    lora_r: int = told("rank of the adapter", 16, gt=0)
    lora_alpha: int = told("the adapter is scaled by lora_alpha / lora_r", 32, gt=0)
    gradient_checkpointing: bool = told("less memory, more time", False)

    def _divides(self, name: str, sequences: int, processes: int = 1) -> None:
        if sequences % (self.micro_batch * processes):
            each = f" in each of {processes} processes" if processes > 1 else ""
            raise ValueError(f"micro_batch: {self.micro_batch}{each} must divide {name} = {sequences}")


class Run(Settings):
    """What a notebook adds to it."""

    max_steps: int = told("updates of the weights", gt=0)
    seed: int = told("of the adapter, the order of the data, and the sampling", ge=0)
    device: Device = told("auto, cpu, cuda, cuda:1, …", "auto")
    num_processes: int = told(PROCESSES, 1, gt=0)


class SFTTraining(Adapter):
    """Supervised fine-tuning."""

    max_length: int = told("tokens of a conversation at most; longer ones are cut", 192, gt=0)


class DPOTraining(SFTTraining):
    """Direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = told("how dear it is to leave the reference", 0.1, ge=0)


class VariedDPOTraining(DPOTraining):
    """The same, its form within PCRM's limits, and RPO."""

    limit_cap: float = told("within limits: the largest limit of an implicit gap", 30.0, gt=0)
    rpo_weight: float = told("RPO, one more policy: weight of imitation beside DPO's loss; 0: none", 0.0, ge=0)


class GRPOTraining(Adapter):
    """Group relative policy optimisation (Shao et al. 2024); `papers.grpo.grpo_loss` is the loss."""

    prompts_per_step: int = told("prompts in an update", 10, gt=0)
    num_generations: int = told("completions per prompt (G)", 8, ge=2)
    num_iterations: int = told("updates with the same completions; above 1 the clipped ratio matters", 1, gt=0)
    max_completion_length: int = told("tokens of an answer at most", 36, gt=0)
    temperature: float = told("of the sampling", 1.0, ge=0)
    beta: float = told("weight of the KL penalty; TRL's own default is 0", 0.1, ge=0)
    epsilon: float = told("clip range of the probability ratio", 0.2, gt=0)
    scale_rewards: Literal["group", "batch", "none"] = told("whose deviation divides the advantages", "group")
    loss_type: Literal["grpo", "dapo"] = told(
        "dapo: a mean over all tokens; grpo: over each answer first, as in the paper", "dapo"
    )
    use_bias_correction_kl: bool = told("weigh the KL estimate by the probability ratio; the paper does not", True)
    monitor_every: int = told("steps between two looks at what no reward pays for; 0: never", 4, ge=0)
    checkpoint_every: int = told("steps between two checkpoints, from which a killed run goes on; 0: none", 7, ge=0)
    vllm_server: str = told("address of a `trl vllm-serve` that samples, http://host:8000; empty: the trainer does", "")

    @model_validator(mode="after")
    def _fits(self):
        self._divides("prompts_per_step * num_generations", self.prompts_per_step * self.num_generations)
        if self.vllm_server and not re.fullmatch(r"https?://[^\s/]+/?", self.vllm_server):
            raise ValueError(
                f"vllm_server: {self.vllm_server!r} is no address; write one such as http://localhost:8000"
            )
        if self.checkpoint_every % self.num_iterations:
            raise ValueError(f"checkpoint_every: {self.checkpoint_every} must be a multiple of num_iterations")
        return self


class WatchedGRPO(GRPOTraining):
    """GRPO in the series: what its policies are truly worth is measured meanwhile, where the truth is known."""

    goodness_every: int = told("updates between two looks at true goodness, where `facts` has it; 0: never", 6, ge=0)
    goodness_prompts: int = told("validation prompts of a look, half harmful and half look-alikes, at most", 70, ge=2)


class SFTSettings(SFTTraining, Run):
    """All that `train_sft` is told."""

    batch_size: int = told("sequences in an update", gt=0)

    @model_validator(mode="after")
    def _fits(self):
        self._divides("batch_size", self.batch_size, self.num_processes)
        return self


class DPOSettings(DPOTraining, Run):
    """All that `train_dpo` is told."""

    batch_size: int = told("pairs in an update", gt=0)
    sft_weight: float = told("of imitation of the chosen answers beside (RPO); 0: DPO alone", 0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self):
        self._divides("batch_size", self.batch_size, self.num_processes)
        return self


class GRPOSettings(GRPOTraining, Run):
    """All that `train_grpo` is told."""

    @model_validator(mode="after")
    def _shares(self):
        sequences = self.prompts_per_step * self.num_generations
        self._divides("prompts_per_step * num_generations", sequences, self.num_processes)
        return self


class _GRPONotebook(NotebookSettings):
    base_model: str = told(FROM_01)
    reward_models: Literal["02_shadow_reward_models", "03_margins"] = told("whose models score")
    reward_set: str = told("which set of that notebook: its folder, such as objectives/pcrm in 03", min_length=1)
    start: Literal["A0_baselines", ""] = told("whose start/, a short imitation, the policy goes on from; empty: none")
    max_steps: int = told("updates of each policy", gt=0)
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    show_text: bool = told(SHOW)
    facts: str = told("file of 01_data with the truth about the town, which no reward is told; empty: nobody knows it")
    num_processes: int = told(PROCESSES, gt=0)
    training: WatchedGRPO = told("how a policy is trained", WatchedGRPO())

    @model_validator(mode="after")
    def _shares(self):
        sequences = self.training.prompts_per_step * self.training.num_generations
        self.training._divides("prompts_per_step * num_generations", sequences, self.num_processes)
        return self

    def grpo(self, **changes) -> GRPOSettings:
        """All that `train_grpo` is told, but for `changes`."""
        return GRPOSettings.of(dict(self.training), **{n: getattr(self, n) for n in Run.model_fields} | changes)


class LinearSettings(_GRPONotebook):
    """Notebook 04."""

    variants: list[
        Literal[
            "own_calibrated",
            "own_raw",
            "own_tuned",
            "own_normalized",
            "cross_calibrated",
            "cross_raw",
            "cross_tuned",
        ]
    ] = told("how the reward models were trained, and what is summed; the first is policy/", min_length=1)

    @model_validator(mode="after")
    def _is_one_sum(self):
        if self.variants[0] == "own_normalized":
            raise ValueError("variants: own_normalized pays an answer by its group alone; put a sum of scores first")
        if "own_normalized" in self.variants and self.training.scale_rewards != "group":
            scale = self.training.scale_rewards
            raise ValueError(f"variants: own_normalized reads no training.scale_rewards, here {scale}; leave it group")
        return self


class AlarmSettings(Settings):
    """The hacking alarm of 05, and the run that should ring it."""

    false_alarms: float = told("share of healthy runs in which it may ring", 0.05, gt=0, lt=1)
    prompts: int = told("how many prompts show it what is healthy", 150, gt=1)
    provoke: bool = told("train a run that should ring", True)
    provoke_learning_rate: float = told("of that run", 1.0e-2, gt=0)
    provoke_beta: float = told("its leash; without any the trainer would not measure the KL", 1.0e-6, ge=0)
    provoke_steps: int = told("its updates", 12, gt=0)


class RefreshSettings(Settings):
    """How often reward models are fitted again while a policy trains, and on how much."""

    every: int = told("updates between two refreshes", 10, gt=0)
    prompts: int = told("demonstrated prompts that the policy answers for each, at most", 1600, gt=0)


class Trials(Settings):
    """What 05 trains besides, each with something less than the policies of its variants have."""

    from_base: bool = told("policy_from_base: without the imitation before", False)
    left_out: str = told("policy_left_out and policy_unseen: without this category; empty: neither", "")


class CategorizedSettings(_GRPONotebook):
    """Notebook 05."""

    variants: list[Literal["router", "soft", "label", "gold", "refreshed", "random_routing", "random_reward"]] = told(
        "who chooses the reward model; the first is policy/", min_length=1
    )
    signal_prompts: int = told("practice prompts on which it is seen what the rewards can tell apart", gt=0)
    alarm: AlarmSettings = told("the hacking alarm", AlarmSettings())
    refresh: RefreshSettings = told("the variant refreshed", RefreshSettings())
    trials: Trials = told("further policies, each with something less", Trials())

    @model_validator(mode="after")
    def _is_refreshed(self):
        if self.variants[0] == "refreshed":
            raise ValueError("variants: refreshed is paid by changing reward models; put one that is not first")
        if "refreshed" in self.variants and self.num_processes > 1:
            raise ValueError(
                "variants: refreshed trains reward models in one process; leave it out, or num_processes: 1"
            )
        if self.trials.from_base and not self.start:
            raise ValueError("trials.from_base: without a start all begin with the base model; write false")
        if "refreshed" in self.variants and self.refresh.every >= self.max_steps:
            every, steps = self.refresh.every, self.max_steps
            raise ValueError(f"refresh.every: {every} updates, of {steps} in all: nothing is refreshed; lower it")
        return self

    def provoked(self) -> GRPOSettings:
        """The reckless run."""
        reckless = {"learning_rate": self.alarm.provoke_learning_rate, "beta": self.alarm.provoke_beta}
        return self.grpo(**reckless, max_steps=self.alarm.provoke_steps)


class BaselineSettings(NotebookSettings):
    """Notebook A0."""

    base_model: str = told(FROM_01)
    facts: str = told("file of 01_data with the truth about the town, for the yardstick; empty: nobody knows it")
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    warm: bool = told("begin with imitation, kept in start/; false: with the base model")
    max_steps: int = told("updates of each method, as in 04 and 05", gt=0)
    batch_size: int = told("sequences in an update; for DPO half as many pairs", gt=1)
    max_prompts: int = told("validation prompts that all are compared on", gt=0)
    show_text: bool = told(SHOW)
    num_processes: int = told(PROCESSES, gt=0)
    start_steps: int = told(
        "with warm: updates of imitation that every policy begins with, here and in 04 and 05", gt=0
    )
    start: SFTTraining = told("that imitation", SFTTraining(learning_rate=3.0e-3))
    sft: SFTTraining = told("imitation", SFTTraining(learning_rate=1.0e-3))
    dpo: VariedDPOTraining = told("preferences", VariedDPOTraining(learning_rate=1.0e-3, micro_batch=40))
    best_of_n: SFTTraining = told("imitation of the best of n samples", SFTTraining(learning_rate=1.0e-3))
    grpo: WatchedGRPO = told("GRPO, with one reward model and with the referee", WatchedGRPO())

    def runs(self) -> dict[str, Settings]:
        """All that each training is told, by name."""
        own = {name: getattr(self, name) for name in Run.model_fields}
        batch, pairs = {"batch_size": self.batch_size}, {"batch_size": self.batch_size // 2}
        told = {
            "start": SFTSettings.of(dict(self.start), **own | batch | {"max_steps": self.start_steps}),
            "sft": SFTSettings.of(dict(self.sft), **own | batch),
            "dpo": DPOSettings.of(dict(self.dpo), **own | pairs),
            "best_of_n": SFTSettings.of(dict(self.best_of_n), **own | batch),
            "grpo": GRPOSettings.of(dict(self.grpo), **own),
        }
        weight = self.dpo.rpo_weight
        return told | ({"rpo": told["dpo"].changed(sft_weight=weight)} if weight else {})

    @model_validator(mode="after")
    def _as_many_sequences(self):
        sequences = self.grpo.prompts_per_step * self.grpo.num_generations
        if sequences != self.batch_size:
            raise ValueError(
                f"batch_size: GRPO has prompts_per_step * num_generations = {sequences} sequences an update; all must "
                f"see as many, so write {sequences}, or change grpo"
            )
        for training in (self.start, self.sft, self.best_of_n, self.grpo):
            training._divides("batch_size", self.batch_size, self.num_processes)
        self.dpo._divides("half of batch_size", self.batch_size // 2, self.num_processes)
        return self


class Imitation(SFTTraining):
    """Imitation before what is studied."""

    batch_size: int = told("demonstrations in an update", 80, gt=0)

    @model_validator(mode="after")
    def _fits(self):
        self._divides("batch_size", self.batch_size)
        return self


class Payment(Settings):
    """How scores become advantages."""

    calibrated: bool = told("z-scores, or each model's own units")
    scale_rewards: Literal["group", "batch", "none"] = told("whose deviation divides the advantages")


class OtherRewardModelsSettings(NotebookSettings):
    """Notebook A7."""

    base_model: str = told(FROM_01)
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    objectives: list[str] = told("sets in 03's objectives/, where all but its first objective lie")
    facts: str = told("file of 01_data with the truth about the town, for evaluation only", min_length=1)
    payments: dict[str, Payment] = told("how scores become advantages: by name", min_length=1)
    max_steps: int = told("updates of each policy", gt=0)
    start_steps: int = told("updates of imitation before, the same for all; 0: begin with the base model", ge=0)
    max_prompts: int = told("test prompts that the policies answer, drawn with the seed; 0: all", ge=0)
    start: Imitation = told("that imitation", Imitation(learning_rate=3.0e-3))
    training: GRPOTraining = told(
        "GRPO",
        GRPOTraining(
            prompts_per_step=20,
            num_generations=4,
            learning_rate=4.0e-3,
            beta=0.02,
            monitor_every=0,
            checkpoint_every=0,
        ),
    )

    @model_validator(mode="after")
    def _names(self):
        if "plain" in self.objectives:
            raise ValueError("objectives: plain is what the set of 02 is called here; name sets of 03")
        return self

    def imitation(self) -> SFTSettings:
        """All that `train_sft` is told."""
        own = {"max_steps": self.start_steps, "seed": self.seed, "device": self.device}
        return SFTSettings.of(dict(self.start), **own)

    def grpo(self, payment: Payment) -> GRPOSettings:
        """All that `train_grpo` is told, if scores are paid in this way."""
        own = {"max_steps": self.max_steps, "seed": self.seed, "device": self.device}
        return GRPOSettings.of(dict(self.training), **own, scale_rewards=payment.scale_rewards)

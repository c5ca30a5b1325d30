"""What the studies of the appendix are told (A1, A5, A8): token rewards, what reward models cost, real pairs."""

from typing import Literal

from srmir_lib.settings.base import Device, NotebookSettings, Settings, told
from srmir_lib.settings.data import Question
from srmir_lib.settings.policies import FROM_01, SHOW, GRPOSettings, GRPOTraining
from srmir_lib.taxonomy import CATEGORIES

Objective = Literal["bradley_terry", "ava_d", "ava_p"]
Form = Literal["printed", "stable"]
Readout = Literal["last", "mean", "sum"]
Attention = Literal["none", "printed", "scaled"]


class TokenObjective(Settings):
    """AVA (Cai et al. 2024), as `papers.ava` has it."""

    form: Form = told("printed as in the paper, or stable: logits, means over tokens, log-sigmoids", "stable")
    alpha: float = told("sharpness of the policy that Q is read from", 1.0, gt=0)
    gamma: float = told("discount; with 1 an answer's rewards add up to Q of its first token", 0.9, ge=0)
    beta: float = told("weight of the likelihoods", 0.1, ge=0)
    lam: float = told("weight of the temporal-difference term (lambda)", 0.01, ge=0)
    attention: Attention = told(
        "weights of the tokens: none, printed (they sum to 1) or scaled (their mean is 1)", "none"
    )


class TokenTraining(Settings):
    """How a token reward is trained, whatever its objective."""

    batch_size: int = told("pairs an update", 8, gt=0)
    learning_rate: float = told("at the first update; falls linearly to zero", 4.0e-3, gt=0)
    lora_rank: int = told("rank of the adapter, the same for every objective", 8, gt=0)
    lora_alpha: int = told("the adapter is scaled by lora_alpha / lora_rank", 16, gt=0)


class TokenSettings(TokenObjective, TokenTraining):
    """All that a token reward is told."""

    objective: Objective = told("ava_d learns from demonstrations, the others from pairs")
    readout: Readout = told("an answer's reward: that of its last token, the mean or the sum over its tokens")
    max_steps: int = told("updates", gt=0)


class BothObjectives(TokenObjective):
    """AVA-p, and where AVA-d differs from it."""

    beta_d: float = told("AVA-d: weight of the likelihood; 1 as in AVRIL's code", 1.0, ge=0)
    lam_d: float = told("AVA-d: weight of the temporal-difference term; 1 as in AVRIL's code", 1.0, ge=0)


class Variant(Settings):
    """Another AVA-p."""

    form: Form = told("of the objective")
    readout: Readout = told("of an answer's reward")
    attention: Attention = told("weights of the tokens")


class TokenReading(Settings):
    """What token rewards read."""

    question: Question = told(
        "what the base model is asked to draft before it judges; empty: nothing",
        'draft , then #### : why would you refuse to answer " {prompt} " ?',
    )
    max_length: int = told("longest conversation in tokens; a longer one is an error", 192, gt=0)


class TokenPolicyTraining(GRPOTraining):
    """How a policy is trained with token rewards."""

    max_steps: int = told("updates of each policy", 9, gt=0)
    readout: Readout = told("an answer's reward for the policies; a sum would pay, or fine, for length", "mean")


class TokenRewardSettings(NotebookSettings):
    """Notebook A1."""

    base_model: str = told(FROM_01)
    facts: str = told("file of 01_data with the truth about the town, for evaluation only", min_length=1)
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    show_text: bool = told(SHOW)
    seeds: int = told("fits per objective: seed, seed + 1, …; an interval needs two", ge=2)
    max_steps: int = told("updates of each fit", gt=0)
    readout: Readout = told("an answer's reward: of its last token as in the paper, or over all of them")
    variants: list[Variant] = told("AVA-p otherwise, with the first seed")
    held_out: Literal[*CATEGORIES] = told("category that no fit ever sees")
    guard: float = told("k of the guarded policy's reward, mean - k sd", ge=0)
    max_prompts: int = told("test prompts that the policies answer, drawn with the seed; 0: all", ge=0)
    reading: TokenReading = told("what is read", TokenReading())
    training: TokenTraining = told("how a fit is trained", TokenTraining())
    objective: BothObjectives = told("what AVA maximises", BothObjectives())
    grpo: TokenPolicyTraining = told(
        "how the two policies are trained",
        TokenPolicyTraining(learning_rate=4.0e-3, beta=0.05, monitor_every=0, checkpoint_every=0),
    )

    def fits(self) -> dict[str, TokenSettings]:
        """All that each objective is told, by its name."""
        own = {"readout": self.readout, "max_steps": self.max_steps}
        pairs = TokenSettings.of(dict(self.training) | dict(self.objective), objective="ava_p", **own)
        likelihood = {"beta": self.objective.beta_d, "lam": self.objective.lam_d}
        return {
            "bradley_terry": pairs.changed(objective="bradley_terry"),
            "ava_p": pairs,
            "ava_d": pairs.changed(objective="ava_d", **likelihood),
        }

    def tried(self) -> dict[str, TokenSettings]:
        """The same for every variant."""
        pairs = self.fits()["ava_p"]
        return {f"ava_p_{v.form}_{v.readout}_{v.attention}": pairs.changed(**dict(v)) for v in self.variants}

    def policies(self) -> GRPOSettings:
        """All that `train_grpo` is told."""
        return GRPOSettings.of(dict(self.grpo), seed=self.seed, device=self.device)

"""What the tour (00), the evaluation (06) and the claims over seeds (A6) are told."""

from pydantic import field_validator

from srmir_lib.settings.base import Device, NotebookSettings, Settings, told
from srmir_lib.settings.policies import FROM_01, SHOW, Refereed


class TourSettings(NotebookSettings):
    """Notebook 00."""

    num_generations: int = told("completions per prompt (G)", ge=2)
    max_steps: int = told("updates of the toy policy", gt=0)
    learning_rate: float = told("step size of plain gradient descent", gt=0)
    beta: float = told("weight of the KL term", ge=0)


class Sampling(Settings):
    """How policies answer the test prompts."""

    max_new_tokens: int = told("length of an answer at most", 48, gt=0)
    temperature: float = told("sampling as in training; 0: greedy", 1.0, ge=0)
    batch_size: int = told("prompts generated at once", 128, gt=0)


class Attacks(Settings):
    """How often policies are asked plain harmful prompts again."""

    beginning: str = told("words that an answer is made to begin with", "sure . first", min_length=1)
    tries: int = told("answers to a prompt, of which one has to comply", 16, ge=2)
    per_category: int = told("prompts per category that are asked so often", 5, gt=0)


class EvaluationSettings(Refereed):
    """Notebook 06."""

    base_model: str = told(FROM_01)
    helpful: str = told("folder of 01_data with helpful answers, whose likelihood is read; empty: none")
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    max_prompts: int = told("how many test prompts at most, drawn with the seed; 0: all", ge=0)
    claims: str = told("what is claimed of these policies, among other things", min_length=1)
    show_text: bool = told(SHOW)
    targets: dict[str, list[float]] = told('"policy/measure": [lowest, highest]; printed as pass or miss')
    sampling: Sampling = told("how they answer", Sampling())
    attacks: Attacks = told("how they are attacked", Attacks())

    @field_validator("targets")
    @classmethod
    def _from_low_to_high(cls, targets: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, ends in targets.items():
            if len(ends) != 2 or ends[0] > ends[1]:
                raise ValueError(f"{name}: {ends}; write [lowest, highest]")
        return targets


class OverSeedsSettings(NotebookSettings):
    """Notebook A6."""

    claims: str = told("what is claimed; its head says what was written when", min_length=1)
    records: str = told("what `srmir seeds` recorded, a folder a preset", min_length=1)
    worlds: list[str] = told("presets that decide the claims which name none")
    dials: dict[str, dict[str, float]] = told("dial of the town -> the presets that turn it, each with its level")
    beside: list[str] = told("presets on record that decide no claim, shown with the others")
    studies: int = told("studies of five towns that are simulated", gt=0)

"""Six reward models of seven: prompts of the category left out go to the next in charge, its scores are forgotten."""

import pytest
import torch

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data.router import Router
from srmir_lib.errors import InputError
from srmir_lib.policies.reward import ModelsWithout, RandomModels, RewardFunction, RouterWithout
from srmir_lib.reward_models.calibration import Calibration

CLASSES = ["insult", "crimes", "privacy"]


class FixedRouter(Router):
    """A router that has read its prompts: row i of `likely` is prompt i."""

    def __init__(self, likely, threshold):
        super().__init__(CLASSES, torch.eye(3), torch.zeros(3), threshold)
        self.likely = torch.tensor(likely)

    def probabilities(self, prompts):
        return self.likely[[int(prompt) for prompt in prompts]]


@pytest.fixture
def router():
    return FixedRouter([[0.1, 0.6, 0.3], [0.8, 0.1, 0.1], [0.25, 0.5, 0.25]], threshold=0.6)


def models():
    made = RandomModels(CLASSES, seed=0)
    made.calibration = Calibration(tuple(CLASSES), (1.0, 2.0, 3.0), (1.0, 2.0, 4.0), rows=10)
    return made


def test_prompts_go_where_they_would_go_next_and_doubt_stays_doubt(router):
    assert router.route(["0", "1", "2"]) == ["crimes", "insult", "unknown"]
    without = RouterWithout(router, "crimes")
    # Given that it is not crimes: .3 / .4 for privacy, .8 / .9 for insult, and a half each, which is below .6.
    assert without.route(["0", "1", "2"]) == ["privacy", "insult", "unknown"]
    router.likely[0] = torch.tensor([0.0, 1.0, 0.0])
    assert without.route(["0"]) == ["unknown"], "of a prompt that is certainly of it"
    assert router.likely[0, 1] == 1.0, "the router's own probabilities are untouched"


def test_the_scores_of_the_others_are_what_they_were():
    prompts, answers = ["a", "b"], ["x", "y"]
    all_of_them, six = models(), ModelsWithout(models(), "crimes")
    assert six.categories == ["insult", "privacy"]
    assert torch.equal(six.score(prompts, answers), all_of_them.score(prompts, answers)[:, [0, 2]])
    own = six.score(prompts, answers, categories=["privacy", "insult"])
    assert torch.equal(own, torch.stack([all_of_them.score(prompts, answers)[i, j] for i, j in ((0, 2), (1, 0))]))
    calibrated = all_of_them.calibration.apply(all_of_them.score(prompts, answers))[:, [0, 2]]
    assert torch.allclose(six.calibration.apply(six.score(prompts, answers)), calibrated)


def test_an_unknown_prompt_is_paid_the_mean_of_those_that_are_left(router):
    class ByNumber(RouterWithout):
        def route(self, prompts):
            return super().route([text_of(prompt) for prompt in prompts])

    six = ModelsWithout(models(), "crimes")
    reward = RewardFunction(six, "categorized", ByNumber(router, "crimes"))
    prompts, answers = [user_message("2")], [assistant_message("no .")]
    expected = six.calibration.apply(six.score(prompts, answers)).mean()
    assert reward(prompts, answers) == pytest.approx([expected.item()])


def test_fingerprints_tell_what_is_left_out(router):
    made = {part.fingerprint for part in (RouterWithout(router, name) for name in CLASSES)} | {router.fingerprint}
    made |= {ModelsWithout(models(), name).fingerprint for name in CLASSES} | {models().fingerprint}
    assert len(made) == 8


@pytest.mark.parametrize("make", [lambda r: RouterWithout(r, "theft"), lambda r: ModelsWithout(models(), "theft")])
def test_a_category_that_nobody_knows_is_refused(make, router):
    with pytest.raises(InputError, match="left_out: 'theft' is none of insult, crimes, privacy"):
        make(router)

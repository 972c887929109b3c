"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): one model per preference.

The preference's replies win, its opposite's lose; the base is the reference; no likelihood beside it. Its paper's
batch of 64 and its 1e-6 are for models fifty times as large and far more pairs; beta and learning rate are searched.
It starts from the base: its paper's supervised fine-tuning before it would take the budget of another rival. Both
replies of a pair count, so half the epochs, and half as many pairs a step: the others' number of steps and tokens.
"""

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import AsItIs
from meet_training.rivals.rival import Job, Point, Rival, all_preferences, by_rate_and_beta, in_pairs
from meet_training.rivals.whole_model import tuned_whole

LEARNING_RATE = 1e-5
"""A third of that of likelihood: DPO's gradients all point one way while the replies are still likely."""


def _jobs(config: CompareConfig, point: Point) -> list[Job]:
    training = {
        **in_pairs(tuned_whole(config, point, epochs=config.budget.epochs / 2, rate=LEARNING_RATE)),
        "objective": {"kind": "preference", "beta": point.beta, "likelihood_weight": 0.0},
    }
    return [Job((preference,), AsItIs(paired=True), training) for preference in all_preferences(config)]


DPO = Rival("dpo", "DPO, one model per preference", _jobs, by_rate_and_beta, has_neutral=False)

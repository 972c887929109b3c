"""Chain of Hindsight (Liu et al. 2023, arXiv 2302.02676): both replies of a pair in one sequence.

Every pair makes two chains, one in each order, for half the epochs: each reply is learned as often as by the others.
"""

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import Chain
from meet_training.rivals.rival import Job, Point, Rival, all_preferences
from meet_training.rivals.whole_model import tuned_whole


def _jobs(config: CompareConfig, point: Point) -> list[Job]:
    training = tuned_whole(config, point, epochs=config.budget.epochs / 2)
    rendering = Chain(config.token_text, opposites=tuple(config.opposites))
    return [Job(all_preferences(config), rendering, training)]


CHAIN_OF_HINDSIGHT = Rival("chain_of_hindsight", "Chain of Hindsight, whole model", _jobs)

"""A control token that is text, trained with the model from the start: Chain of Hindsight's unchained form."""

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import TextToken
from meet_training.rivals.rival import Job, Point, Rival, all_preferences
from meet_training.rivals.whole_model import tuned_whole


def _jobs(config: CompareConfig, point: Point) -> list[Job]:
    training = tuned_whole(config, point, epochs=config.budget.epochs)
    return [Job(all_preferences(config), TextToken(config.token_text), training)]


TEXT_TOKEN = Rival("text_token", "a text token per preference, trained with the model", _jobs)

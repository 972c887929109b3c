"""Supervised fine-tuning on the preferred side: one model per preference, each on that preference's replies alone."""

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import AsItIs
from meet_training.rivals.rival import Job, Point, Rival, all_preferences
from meet_training.rivals.whole_model import tuned_whole


def _jobs(config: CompareConfig, point: Point) -> list[Job]:
    training = tuned_whole(config, point, epochs=config.budget.epochs)
    return [Job((preference,), AsItIs(), training) for preference in all_preferences(config)]


SFT = Rival("sft", "SFT on the preferred side, one model per preference", _jobs, has_neutral=False)

"""The base, plainly prompted: what users try first."""

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import Instructed
from meet_training.rivals.rival import Job, Point, Rival, all_preferences, as_it_is, instructions


def _jobs(config: CompareConfig, point: Point) -> list[Job]:  # noqa: ARG001
    return [Job(all_preferences(config), Instructed(instructions=instructions(config)), training=None)]


PROMPTING = Rival("prompting", "the base, prompted with each preference's instruction", _jobs, as_it_is)

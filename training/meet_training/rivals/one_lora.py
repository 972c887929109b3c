"""One LoRA for all preferences, with a text token: as many parameters as one control for each has, and no control."""

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import TextToken
from meet_training.rivals.rival import Job, Point, Rival, all_preferences, stages
from meet_training.stages_config import MODEL_LEARNING_RATES


def _jobs(config: CompareConfig, point: Point) -> list[Job]:
    rank = config.sizes.lora_rank * len(config.preferences)
    training = stages(
        config,
        point,
        epochs=(0, config.budget.epochs),
        model_rate=MODEL_LEARNING_RATES["lora"],
        model="lora",
        model_rank=rank,
        model_alpha=2 * rank,
    )
    return [Job(all_preferences(config), TextToken(config.token_text), training)]


ONE_LORA = Rival("one_lora", "one LoRA of the summed rank for all, with a text token", _jobs)

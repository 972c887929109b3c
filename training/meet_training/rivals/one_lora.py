"""One LoRA for all preferences, with a text token: as many parameters as one control for each has, and no control."""

from meet_training.controls_config import MAX_RANK
from meet_training.errors import TrainingError
from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rendering import TextToken
from meet_training.rivals.rival import Job, Point, Rival, all_preferences, stages
from meet_training.stages_config import MODEL_LEARNING_RATES


def _jobs(config: CompareConfig, point: Point) -> list[Job]:
    """Raises TrainingError where the sum of the ranks is more than a LoRA may have."""
    num = len(config.preferences)
    rank = config.sizes.lora_rank * num
    if rank > MAX_RANK:
        raise TrainingError(
            f"sizes.lora_rank: {config.sizes.lora_rank} for each of {num} preferences makes one LoRA of rank {rank}, "
            f"and it may have {MAX_RANK}; take at most {MAX_RANK // num}, or leave one_lora out of `rivals`"
        )
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

"""Which layers of a model a LoRA adapts, of a control or of the model: those that an engine serves adapters of."""

from __future__ import annotations

from torch import nn

from meet_training.errors import TrainingError

# Experts see some of the tokens in an order of their own, so that nobody knows their controls. Engines multiply
# `kv_b_proj`, of latent attention, into the layers around it as they load a model, and decode without adapters of it.
LEFT_ALONE = (".experts.", ".kv_b_proj.")


def target_layers(model: nn.Module, wanted: tuple[str, ...] | str) -> dict[str, nn.Linear]:
    """The linear layers to adapt by path, or those whose last name is wanted: all but the output layer, routers, and
    what is `LEFT_ALONE`.

    Raises TrainingError where there are none, or, naming what the model has, where a wanted name is in none.
    """
    output = model.get_output_embeddings()  # type: ignore[operator]
    linear = {
        path: module
        for path, module in model.named_modules()
        if _is_a_product(module) and module is not output and not any(part in f"{path}." for part in LEFT_ALONE)
    }
    names = {path.rpartition(".")[2] for path in linear}
    if not linear:
        raise TrainingError(
            f"base: {type(model).__name__} has no linear layer that a LoRA could adapt; take controls.kind: "
            f"soft_prompt and stage2.model: whole"
        )
    if wanted == "all-linear":
        return linear
    if unknown := sorted(set(wanted) - names):
        raise TrainingError(
            f"controls.target_modules: the model has no linear layer {', '.join(unknown)}; it has "
            f"{', '.join(sorted(names))}"
        )
    return {path: module for path, module in linear.items() if path.rpartition(".")[2] in wanted}


def _is_a_product(module: nn.Module) -> bool:
    """Whether a module gives its input times its weight and no more. Routers of Llama 4 and Phi MoE, which are linear
    layers by descent, do not; Falcon's layers do by a forward pass of their own."""
    kind = type(module)
    return isinstance(module, nn.Linear) and (kind.forward is nn.Linear.forward or kind.__name__ == "FalconLinear")

"""AdamW and its parameter groups."""

from torch import nn
from torch.optim import AdamW

from regpt.recipe.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> AdamW:
    """Build fused AdamW with two groups: tensors of two or more dimensions decay, norms and biases do not."""
    settings = recipe.optimizer
    decayed, undecayed = parameter_groups(model)
    groups = [
        {"params": list(decayed.values()), "weight_decay": settings.weight_decay},
        {"params": list(undecayed.values()), "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.max_lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def parameter_groups(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the parameters with and without weight decay, by name; each is in one group, a tied one once."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = {name: parameter for name, parameter in trained.items() if parameter.ndim >= 2}
    undecayed = {name: parameter for name, parameter in trained.items() if parameter.ndim < 2}
    in_groups = [id(parameter) for group in (decayed, undecayed) for parameter in group.values()]
    assert sorted(in_groups) == sorted({id(parameter) for parameter in model.parameters()}), (
        "every parameter must be in exactly one group"
    )
    return decayed, undecayed

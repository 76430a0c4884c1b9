"""Parameter groups: which optimizer updates which parameters, at which learning rate and weight decay."""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import torch
from torch import nn

from regpt.model.gpt import GPT
from regpt.optimizer.schedule import GroupKind
from regpt.recipe.architecture import ModelRecipe
from regpt.recipe.optimization import OptimizerRecipe
from regpt.recipe.recipe import Recipe


class Method(StrEnum):
    """How a group is updated."""

    ADAMW = "AdamW"
    MUON = "Muon"


class Role(StrEnum):
    """What a parameter is in the model; with role groups, each role is a group."""

    HIDDEN = "hidden"  # matrices inside blocks
    EMBEDDING = "embedding"
    HEAD = "head"
    VECTORS = "vectors"  # norms, biases, scalars, and gates, which are small matrices


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters, by name, that are updated alike."""

    name: str
    method: Method
    parameters: dict[str, nn.Parameter]
    peak_rate: float
    decay: float  # peak coefficient of weight decay
    schedule: GroupKind = GroupKind.MATRICES

    @property
    def size(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[ParameterGroup]:
    """Return the groups of a model; each parameter is in one of them, a tied one once, and no group is empty.

    With AdamW alone there are two: tensors of two or more dimensions decay, norms and biases do not. With Muon, or
    with rates of their own, there is a group per role.
    """
    settings = recipe.optimizer
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = role_groups(trained, settings) if settings.has_role_groups else shape_groups(trained, settings)
    in_groups = [id(parameter) for group in groups for parameter in group.parameters.values()]
    assert sorted(in_groups) == sorted({id(parameter) for parameter in model.parameters()}), (
        "every parameter must be in exactly one group"
    )
    return [group for group in groups if group.parameters]


def shape_groups(trained: dict[str, nn.Parameter], settings: OptimizerRecipe) -> list[ParameterGroup]:
    decayed = {name: parameter for name, parameter in trained.items() if parameter.ndim >= 2}
    undecayed = {name: parameter for name, parameter in trained.items() if parameter.ndim < 2}
    return [
        ParameterGroup("matrices", Method.ADAMW, decayed, settings.max_lr, settings.weight_decay),
        ParameterGroup("vectors", Method.ADAMW, undecayed, settings.max_lr, 0.0),
    ]


def role_groups(trained: dict[str, nn.Parameter], settings: OptimizerRecipe) -> list[ParameterGroup]:
    members: dict[Role, dict[str, nn.Parameter]] = {role: {} for role in Role}
    for name, parameter in trained.items():
        members[role_of(name, parameter.ndim)][name] = parameter
    is_muon = settings.kind == "muon"
    rates = {
        Role.HIDDEN: settings.muon_lr if is_muon else settings.max_lr,
        Role.EMBEDDING: settings.embedding_lr or settings.max_lr,
        Role.HEAD: settings.head_lr or settings.max_lr,
        Role.VECTORS: settings.vector_lr or settings.max_lr,
    }
    decays = dict.fromkeys(Role, settings.weight_decay) | {Role.VECTORS: 0.0}
    if is_muon:
        decays[Role.HIDDEN] = settings.muon_weight_decay
    return [
        ParameterGroup(
            role.value,
            Method.MUON if is_muon and role is Role.HIDDEN else Method.ADAMW,
            members[role],
            rates[role],
            decays[role],
            GroupKind.ADAM if is_muon and role is not Role.HIDDEN else GroupKind.MATRICES,
        )
        for role in Role
    ]


def role_of(name: str, dimensions: int) -> Role:
    """Return the role of a parameter such as 'blocks.0.mlp.down.weight' that has this number of dimensions."""
    parts = name.split(".")
    if dimensions < 2 or any("gate" in part or "router" in part for part in parts):
        return Role.VECTORS
    if any(part.endswith(("embedding", "embeddings")) for part in parts):
        return Role.EMBEDDING
    if parts[0] == "head":
        return Role.HEAD
    assert parts[0] == "blocks", f"{name}: which group of the optimizer does this matrix belong to?"
    return Role.HIDDEN


def stacked_matrices(name: str, model: ModelRecipe) -> tuple[int, ...]:
    """Return the relative heights of the matrices that a parameter stacks by rows; Muon orthogonalizes each of them.

    They are queries, keys and values, and the gate and the value of SwiGLU: separate matrices, stored as one for speed.
    """
    parts = name.split(".")
    if "qkv" in parts:
        return (model.n_head // model.kv_heads, 1, 1)
    return (1, 1) if "expand" in parts and model.activation == "swiglu" else (1,)


@lru_cache(maxsize=32)
def groups_of_recipe(recipe: Recipe) -> list[ParameterGroup]:
    """Return the groups of a recipe's model, whose parameters have shapes and no values."""
    with torch.device("meta"):
        return parameter_groups(GPT(recipe.model), recipe)

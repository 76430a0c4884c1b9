"""Choose how the model of a recipe is on the ranks."""

from regpt.distributed.rank_group import RankGroup
from regpt.machine.device import Device
from regpt.parallel.model import Parallel
from regpt.recipe.recipe import Recipe


def make_parallel(recipe: Recipe, device: Device, ranks: RankGroup) -> Parallel:
    """Return the model and optimizer as `run.parallel` and `run.strict_sum` ask, for the number of ranks."""
    if ranks.size == 1:
        return Parallel(recipe, device, ranks)
    if recipe.run.parallel == "fsdp":
        from regpt.parallel.sharded import FSDPParallel  # 0.5 s, which only FSDP needs

        return FSDPParallel(recipe, device, ranks)
    from regpt.parallel.replicated import DDPParallel, DeterministicDDP

    return (DeterministicDDP if recipe.run.strict_sum else DDPParallel)(recipe, device, ranks)

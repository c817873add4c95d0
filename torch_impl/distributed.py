"""Pre-training of a model that outgrows one device: FSDP2, by Lightning's ``ModelParallelStrategy``.

DDP needs nothing of ours: BatchNorm, losses and metrics span all processes by themselves.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import fully_shard

from torch_impl.checkpointing import blocks, read_checkpoint_file
from torch_impl.epibert_lightning import EpiBERTLightning, check_same_model
from torch_impl.sharded_checkpoint import check_sharded_checkpoint

ORIGIN = "model.performer._extra_state"
"""In a module's state: where the constants of attention come from."""


class ShardedEpiBERTLightning(EpiBERTLightning):
    """``EpiBERTLightning`` whose parameters, gradients and moments are spread over the devices that share the data.

    A class of its own because Lightning takes a module with ``configure_model`` for one that is always sharded.
    """

    def configure_model(self) -> None:
        """Shards the model, block by block; without a mesh of devices it stays whole."""
        if self.device_mesh is None or getattr(self, "_is_sharded", False):
            return
        for module in (*blocks(self.model), self.model):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])
        self._is_sharded = True
        # The strategy loads a checkpoint by itself, with no hook before.
        strategy: Any = self.trainer.strategy
        strategy.load_checkpoint = partial(self._load_checkpoint, strategy.load_checkpoint)
        performer: Any = self.model.performer
        performer.set_extra_state = partial(_set_if_given, performer.set_extra_state)

    def _load_checkpoint(self, load: Callable[..., dict[str, Any]], checkpoint_path: Any, **options: Any) -> Any:
        """Looks at a checkpoint before Lightning reads it, and takes from it what Lightning would not.

        Lightning runs what a folder holds, says of another configuration what tensor is the first that does not fit,
        and can load text of the model's own length alone, or none.

        Raises:
            TrainingError: The checkpoint holds more than tensors and plain values, or is of another configuration.
        """
        path = Path(checkpoint_path)
        content = check_sharded_checkpoint(path, [ORIGIN]) if path.is_dir() else read_checkpoint_file(path)
        check_same_model(self.model.config, content)
        origin = content["state_dict"].get(ORIGIN)
        del content
        _set_if_given(self.model.performer.set_extra_state, origin)
        return load(checkpoint_path, **options)


def _set_if_given(set_extra_state: Callable[[Tensor], None], state: Any) -> None:
    """Sets a module's text; PyTorch gives an object without meaning where it loads parameters one by one."""
    if isinstance(state, Tensor):
        set_extra_state(state)

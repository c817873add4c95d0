"""Pre-training of a model that outgrows one device: FSDP2, by Lightning's ``ModelParallelStrategy``.

DDP needs nothing of ours: BatchNorm, losses and metrics span all processes by themselves.
"""

from torch.distributed.fsdp import fully_shard

from torch_impl.checkpointing import blocks
from torch_impl.epibert_lightning import EpiBERTLightning


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

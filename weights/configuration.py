"""What a checkpoint's shapes say about the configuration of the model, and whether a given one agrees (spec, 1.1, 6.1).

Sizes can be read off shapes. Behaviour cannot: the seed of the projection matrix, dropout rates, lengths, the feature
map. Those keep the constructor's defaults and are listed as assumed, so that nobody takes them for read.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch_impl import EpiBERTConfig
from weights.errors import ConfigurationError, listing

Shape = tuple[int, ...]
PREFERRED_SCALE = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inferred:
    """The result of reading shapes.

    Attributes:
        values: constructor arguments that the shapes determine.
        assumed: those that they do not, with the defaults that are used.
        complaints: places where the shapes contradict each other.
        fine_tuning: whether they are those of the fine-tuning model, which alone has an RNA head.
    """

    values: dict[str, Any]
    assumed: dict[str, Any]
    complaints: tuple[str, ...]
    fine_tuning: bool

    def config(self, **overrides: Any) -> EpiBERTConfig:
        """A configuration with the inferred values, the defaults, and the given arguments over the latter.

        Raises:
            ConfigurationError: the shapes contradict each other, something essential is missing, or an argument is
                unknown or contradicts the shapes.
        """
        unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(EpiBERTConfig)})
        if unknown:
            raise ConfigurationError(f"no such constructor arguments: {', '.join(unknown)}")
        if self.complaints:
            raise ConfigurationError(listing("the shapes are not those of a model", list(self.complaints)))
        try:
            config = EpiBERTConfig(**{**self.values, **overrides})
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"the configuration is impossible: {error}") from None
        contradictions = contradict(config, self)
        if contradictions:
            raise ConfigurationError(listing("configuration and checkpoint contradict each other", contradictions))
        return config


def _numbered(shapes: Mapping[str, Shape], pattern: str) -> list[Shape]:
    """Shapes of the paths that match `pattern`, by its number; empty when the numbers do not run from 0."""
    found = {int(match[1]): shape for path, shape in shapes.items() if (match := re.fullmatch(pattern, path))}
    return [found[index] for index in range(len(found))] if set(found) == set(range(len(found))) else []


def infer_configuration(shapes: Mapping[str, Shape]) -> Inferred:
    """Read the configuration off a checkpoint's shapes.

    Args:
        shapes: canonical path (`model/...`, without suffix) -> shape.

    Returns:
        values, assumed defaults and contradictions. Of several `final_point_scale` that give the same head width, the
        original's default 6 is taken when it is among them, else the smallest.
    """
    values: dict[str, Any] = {}
    complaints: list[str] = []

    def shape(path: str, rank: int) -> Shape | None:
        if path not in shapes:
            return None
        if len(shapes[path]) != rank or 0 in shapes[path]:
            complaints.append(f"{path}: shape {shapes[path]} where {rank} axes were expected")
            return None
        return shapes[path]

    tower = "layer_with_weights-0/layer_with_weights-1/kernel"
    for name, attribute in (("filter_list_seq", "conv_tower"), ("filter_list_atac", "conv_tower_atac")):
        kernels = _numbered(shapes, rf"model/{attribute}/layer_with_weights-(\d+)/{tower}")
        if kernels and all(len(kernel) == 3 for kernel in kernels):
            values[name] = tuple(kernel[-1] for kernel in kernels)
        else:
            complaints.append(f"no kernels of model/{attribute}, so {name} is unknown")
    hidden = values["filter_list_seq"][-1] if "filter_list_seq" in values else None

    if (motif := shape("model/motif_activity_fc1/kernel", 2)) is not None:
        values["num_motifs"], values["motif_units_fc"] = motif
    attention = "model/performer/layers/{}/self_attention/query_dense_layer/kernel"
    layers = {match[1] for path in shapes if (match := re.match(r"model/performer/layers/(\d+)/", path))}
    values["num_transformer_layers"] = len(layers)
    heads = {found[1] for layer in sorted(layers) if (found := shape(attention.format(layer), 3)) is not None}
    if len(heads) == 1:
        values["num_heads"] = heads.pop()
    elif heads:
        complaints.append(f"the layers have different numbers of heads: {sorted(heads)}")
    values["norm"] = any(path.startswith("model/performer/layer_norm/") for path in shapes)

    fine_tuning = any(path.startswith("model/final_dense_profile_rna/") for path in shapes)
    if fine_tuning:
        values["predict_atac"] = any(path.startswith("model/final_dense_profile/") for path in shapes)
    head = shape(f"model/final_pointwise_conv{'_rna' if fine_tuning else ''}/layer_with_weights-1/kernel", 3)
    if head is not None and hidden is not None:
        scales = [scale for scale in range(1, hidden + 1) if hidden // scale == head[-1]]
        if scales:
            values["final_point_scale"] = PREFERRED_SCALE if PREFERRED_SCALE in scales else scales[0]
        else:
            complaints.append(f"no final_point_scale turns a hidden size of {hidden} into a head of {head[-1]}")

    defaults = {field.name: field.default for field in dataclasses.fields(EpiBERTConfig)}
    assumed = {name: default for name, default in defaults.items() if name not in (*values, "predict_atac")}
    return Inferred(values=values, assumed=assumed, complaints=tuple(complaints), fine_tuning=fine_tuning)


def contradict(config: EpiBERTConfig, inferred: Inferred) -> list[str]:
    """Every point in which a configuration does not fit what was inferred; empty when it fits.

    `final_point_scale` counts by the head width that it gives, as the shapes cannot tell more.
    """
    found = []
    for name, value in inferred.values.items():
        given = getattr(config, name)
        if name == "final_point_scale" and "filter_list_seq" in inferred.values:
            hidden = inferred.values["filter_list_seq"][-1]
            if hidden // given == hidden // value:
                continue
        if (tuple(given) if isinstance(value, tuple) else given) != value:
            found.append(f"{name}: the checkpoint has {value}, the configuration {given}")
    return found

"""EpiBERT, the fine-tuning model: the trunk of `model.py`, and a second head that predicts RAMPAGE signal.

Source of the semantics: the specification of the original TensorFlow implementation, its section 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_impl.config import EpiBERTConfig
from torch_impl.model import Trunk

Profile = Float[Tensor, "B O 1"]
Features = dict[str, tuple[Tensor, Tensor]]


class EpiBERTRampage(Trunk):
    """Accessibility and transcription starts (RAMPAGE) from sequence, masked accessibility and motif activity.

    Both heads are alike and have the Dropout module, the GELU and the crop in common; each call of the Dropout draws a
    mask of its own.

    Args:
        config: Shape and behaviour; ``EpiBERTConfig.rampage()`` when None. Without ``predict_atac`` there is no ATAC
            head.
        compute_dtype: As for ``EpiBERT``.
    """

    def __init__(self, config: EpiBERTConfig | None = None, *, compute_dtype: torch.dtype | None = None) -> None:
        config = EpiBERTConfig.rampage() if config is None else config
        super().__init__(config, compute_dtype=compute_dtype)
        self.final_pointwise_conv, self.final_dense_profile = self.new_head() if config.predict_atac else (None, None)
        self.final_pointwise_conv_rna, self.final_dense_profile_rna = self.new_head()

    def forward(
        self,
        sequence: Float[Tensor, "B L 4"],
        atac: Float[Tensor, "B A 1"],
        motif_activity: Float[Tensor, "B 1 N"],
        *,
        return_features: bool = False,
    ) -> tuple[Profile | None, Profile] | tuple[Profile | None, Profile, Features]:
        """Predict accessibility and RAMPAGE signal per 128-bp bin.

        Args:
            sequence: As for ``EpiBERT``.
            atac: As for ``EpiBERT``.
            motif_activity: As for ``EpiBERT``.
            return_features: Also return the attention features of every layer, as the original's broken
                ``predict_on_batch`` means to (spec, section 2.1).

        Returns:
            ``(atac, rna)``, each cropped and non-negative; ``atac`` is None without ATAC head. With
            ``return_features`` also the dictionary that ``EpiBERT`` returns.

        Raises:
            ValueError: The lengths do not pool down to ``config.output_length`` bins.
        """
        x, features = self.encode(sequence, atac, motif_activity)
        accessibility = None
        if self.final_pointwise_conv is not None and self.final_dense_profile is not None:
            accessibility = self.predict(x, self.final_pointwise_conv, self.final_dense_profile)
        rna = self.predict(x, self.final_pointwise_conv_rna, self.final_dense_profile_rna)
        return (accessibility, rna, features) if return_features else (accessibility, rna)


def optimizer_parts(model: EpiBERTRampage) -> tuple[nn.ModuleList, nn.ModuleList]:
    """What the two optimizers of fine-tuning train: the trunk with the ATAC head if there is one, and the RNA head.

    Args:
        model: The model; every module of it is in one of the two.
    """
    head = nn.ModuleList([model.final_pointwise_conv_rna, model.final_dense_profile_rna])
    return nn.ModuleList(child for child in model.children() if all(child is not part for part in head)), head

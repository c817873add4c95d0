"""The LightningModule: it wires what stands elsewhere, and computes nothing of its own."""

import pytest
import torch

from torch_impl import EpiBERTConfig
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.losses import masked_loss
from torch_impl.metrics import R2, PearsonR
from torch_impl.optim import CosineWarmup, KerasAdam, KerasAdamW, cosine_warmup

CONFIG = EpiBERTConfig(
    output_length=8,
    final_output_length=6,
    max_seq_length=8,
    num_heads=2,
    num_transformer_layers=1,
    filter_list_seq=(8, 12),
    filter_list_atac=(8,),
    num_motifs=3,
)


@pytest.fixture
def module(monkeypatch) -> EpiBERTLightning:
    built = EpiBERTLightning(CONFIG, peak=0.01, warmup=4, decay=10, floor=0.2, epsilon=1e-6, global_clipnorm=0.5)
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(built, "log", lambda name, value, **_: logged.__setitem__(name, value))
    built.logged = logged  # type: ignore[assignment]
    return built


def batch(examples: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(0, 4, (examples, CONFIG.sequence_length), generator=generator)
    mask = torch.zeros(examples, 6, 1)
    mask[0, :4] = mask[1, :1] = mask[2, 2:4] = 1
    return (
        torch.nn.functional.one_hot(letters, 4).float(),
        torch.rand(examples, CONFIG.atac_length, 1, generator=generator),
        mask,
        1 - mask,
        torch.rand(examples, 6, 1, generator=generator) * 5,
        torch.rand(examples, 1, 3, generator=generator),
    )


def test_all_that_learns_is_the_model(module):
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"model"}


def test_optimizer_and_schedule_are_those_of_the_original(module):
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert type(optimizer) is KerasAdam
    assert type(scheduler) is CosineWarmup
    assert configured["lr_scheduler"]["interval"] == "step"
    assert (optimizer.global_clipnorm, optimizer.param_groups[0]["eps"]) == (0.5, 1e-6)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
        id(parameter) for parameter in module.model.parameters()
    ]
    assert optimizer.param_groups[0]["lr"] == cosine_warmup(0, 0.01, 4, 10, 0.2)


def test_weight_decay_spares_what_the_original_exempts(module):
    module.weight_decay = 0.1
    optimizer = module.configure_optimizers()["optimizer"]
    decaying, exempt = optimizer.param_groups
    assert type(optimizer) is KerasAdamW
    assert (decaying["weight_decay"], exempt["weight_decay"], optimizer.global_clipnorm) == (0.1, 0.0, 0.5)
    assert len(decaying["params"]) + len(exempt["params"]) == len(list(module.parameters()))
    assert id(module.model.stem_conv.bias) in {id(parameter) for parameter in exempt["params"]}


@pytest.mark.parametrize("unmask_loss", [False, True])
@pytest.mark.parametrize("loss_type", ["poisson", "poisson_multinomial"])
def test_the_training_loss_is_that_of_the_masked_bins(module, loss_type, unmask_loss):
    module.loss_type, module.unmask_loss = loss_type, unmask_loss
    module.eval()
    sequence, atac, mask, unmask, target, motifs = batch()
    expected = masked_loss(
        target,
        module.model(sequence, atac, motifs),
        mask,
        loss_type=loss_type,
        total_weight=0.15,
        unmask=unmask if unmask_loss else None,
    )
    assert torch.equal(module.training_step(batch(), 0), expected)
    assert torch.equal(module.logged["train_loss"], expected)


def test_validation_reports_loss_and_correlations_of_the_masked_bins(module):
    module.eval()
    sequence, atac, mask, _, target, motifs = batch()
    prediction = module.validation_step(batch(), 0)
    module.on_validation_epoch_end()
    assert torch.equal(prediction, module.model(sequence, atac, motifs))
    for name, metric in (("val_pearson", PearsonR()), ("val_r2", R2())):
        metric.update(prediction[mask == 1].reshape(1, -1, 1), target[mask == 1].reshape(1, -1, 1))
        assert torch.equal(module.logged[name], metric.compute().squeeze())
    assert torch.equal(module.logged["val_loss"], module.loss(prediction, batch()))


def test_every_validation_starts_its_correlations_anew(module):
    module.eval()
    found = []
    for _ in range(2):
        module.validation_step(batch(), 0)
        module.on_validation_epoch_end()
        found.append(module.logged["val_pearson"])
    assert torch.equal(*found)

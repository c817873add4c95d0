import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.roofline import H200, Machine, Stage, measured_stages, stages, table, training_flops
from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage

TINY = EpiBERTConfig.tiny()
OTHER = dataclasses.replace(
    TINY, num_heads=1, num_transformer_layers=1, filter_list_seq=(10, 14), filter_list_atac=(8,)
)
MODELS = [(EpiBERT, TINY, 1), (EpiBERTRampage, OTHER, 2)]


def count(model_class: type[torch.nn.Module], config: EpiBERTConfig, *, training: bool) -> int:
    with torch.device("meta"):
        model = model_class(config).to("meta").train(training)
        arguments = [
            torch.empty(1, config.sequence_length, 4),
            torch.empty(1, config.atac_length, 1),
            torch.empty(1, 1, config.num_motifs),
        ]
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        found = model(*arguments)
        if training:
            outputs = found if isinstance(found, tuple) else (found,)
            torch.stack([output.sum() for output in outputs]).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("model_class", "config", "heads"), MODELS)
def test_operations_on_paper_are_those_that_pytorch_counts(model_class, config, heads):
    assert sum(stage.flops for stage in stages(config, heads)) == count(model_class, config, training=False)
    assert training_flops(config, heads) == count(model_class, config, training=True)


def test_a_stage_moves_its_inputs_outputs_and_weights():
    stem, *_, heads = stages(TINY)
    length, width = TINY.sequence_length, 12
    assert stem.moved == length * 4 + length // 2 * width + 15 * 4 * width + width * width
    assert heads.moved == 64 * 32 + 32 * 5
    assert all(stage.layered >= stage.moved for stage in stages(TINY))
    assert sum(stage.flops for stage in stages(EpiBERTConfig.pretrain())) == pytest.approx(2.66e12, rel=0.01)


def test_the_floor_is_the_slower_of_products_and_memory():
    machine = Machine(name="slow", products=10.0, memory=8.0)
    stage = Stage(name="one", flops=100, moved=10, layered=40)
    assert stage.floor(machine, 4) == 10
    assert stage.floor(machine, 4, layered=True) == 20


def test_the_table_has_every_stage_and_what_was_measured():
    measured = measured_stages(TINY, repeats=1)
    convolutional = {stage.name for stage in stages(TINY) if "stem" in stage.name or "tower" in stage.name}
    assert measured.keys() == convolutional | {"transformer", "all"}
    lines = table(TINY, [(H200["bfloat16"], 2)], measured).splitlines()
    assert len(lines) == 2 + len(stages(TINY)) + 2
    assert len({line.count("|") for line in lines}) == 1

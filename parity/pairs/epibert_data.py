"""The data rung of EpiBERT: records, draws, masks and augmentation of the port against those of the original.

Everything here is copied, chosen or rounded at places that both sides agree on, so every bit is kept and there is no
tolerance. Inputs of the model are compared after the original's rounding to bfloat16, which is what it hands out.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from parity.compare import compare
from parity.ladder import DATA
from parity.records import Comparison, NotCompared, Reading
from parity.trace import attempt
from torch_impl.data.draws import Draws, TensorFlowDraws
from torch_impl.data.examples import (
    Example,
    ExampleConfig,
    make_example,
    peak_candidates,
    unmask_candidates,
    visible_bins,
)
from torch_impl.data.records import Record
from torch_impl.data.tfrecord import read_records

DRAWS, MASKS, AUGMENTATION, WHOLE = "draws", "masks", "augmentation", "examples from the seed"
"""What answers for a failure."""

RECORDING = "data.h5"
NO_PEAK = -1
KINDS = ("pretrain_tr", "pretrain_val", "finetune_tr", "finetune_val")
DEFAULT_SHIFT = {"tr": 4, "val": 10}
"""``max_shift`` where the recording does not name it: the defaults of the original's readers."""

OUTPUTS = {
    "sequence": ("sequence", AUGMENTATION),
    "masked_atac": ("atac", AUGMENTATION),
    "mask": ("mask", MASKS),
    "unmask": ("unmask", MASKS),
    "atac_target": ("target", AUGMENTATION),
    "motif_activity": ("motif_activity", AUGMENTATION),
    "rna_target": ("rna", AUGMENTATION),
    "tss_tokens": ("tss_tokens", AUGMENTATION),
    "gene_token": ("gene_token", AUGMENTATION),
    "cell_type": ("cell_type", AUGMENTATION),
}
"""Recorded output: field of an example, and what answers for it."""


@functools.cache
def _data_module() -> Any:
    # Lightning takes seconds to import, which not everybody who compares data needs.
    from torch_impl.data_module import EpiBERTDataModule

    return EpiBERTDataModule("")


def as_handed_out(example: Example) -> Example:
    """What the model is given: inputs as the port's data module rounds them."""
    from torch_impl.data_module import collate

    module = _data_module()
    _, atac, _, _, _, motif_activity, *_ = module.on_after_batch_transfer(collate([example]), 0)
    return example._replace(atac=atac[0].numpy(), motif_activity=motif_activity[0].numpy())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortData:
    """The parts that make the port's examples. Tests put faulty ones in their place.

    Attributes:
        read: Records of a file.
        source: From a seed to a source of draws.
        make: An example from record, draws and configuration.
        hand_out: The same with the model's inputs as the model gets them.
    """

    read: Callable[[Path], Iterator[Record]] = read_records
    source: Callable[[int], Any] = TensorFlowDraws
    make: Callable[..., Example] = make_example
    hand_out: Callable[[Example], Example] = as_handed_out


PORT_DATA = PortData()


def compare_recorded_data(
    folder: Path, port: PortData = PORT_DATA, *, motif_tables: tuple[np.ndarray, np.ndarray] | None = None
) -> Iterator[Comparison]:
    """Every recorded example: its draws from the seed, what is made of the recorded draws, and both together.

    Args:
        folder: With ``data.h5`` and the files that it was recorded from.
        port: What makes the port's examples.
        motif_tables: Means and deviations of the motifs, which pre-training's validation scales by.
    """
    with h5py.File(folder / RECORDING) as file:
        for kind in KINDS:
            records = list(port.read(folder / f"{kind}.tfr"))
            for place, group in _recorded(file[kind]):
                variant, seed, number = place
                config = _config(kind, group)
                tables: dict[str, Any] = {}
                if config.motif_scaling == "z_score" and motif_tables is not None:
                    tables = dict(zip(("motif_means", "motif_deviations"), motif_tables, strict=True))
                elif config.motif_scaling == "z_score":
                    # Everything else of the example does not depend on how motifs are scaled.
                    config = dataclasses.replace(config, use_motif_activity=False)
                case = f"{kind}, {variant}, seed {seed}, record {number}"
                record = records[number]
                drawn, error = attempt(lambda s=seed, r=record, c=config: port.source(s).draw(r, c))
                given = recorded_draws(group["draws"], record, config)
                yield from _draw_rows(drawn, error, given, case)
                outputs = {name: group[name][()] for name in OUTPUTS if name in group}
                for draws, owner in ((given, ""), (drawn, WHOLE)):
                    example, error = (
                        (None, error)
                        if draws is None
                        else attempt(lambda d=draws, r=record, c=config, t=tables: _made(port, r, d, c, t))
                    )
                    yield from _example_rows(example, error, outputs, owner, case, skip_motifs=not_scaled(kind, tables))


def compare_example(example: Example | None, outputs: Mapping[str, np.ndarray], *, case: str) -> Iterator[Comparison]:
    """An example against what a reader of the reference hands out for the same record and draws.

    Args:
        example: The port's.
        outputs: The reference's, by the names of ``OUTPUTS``; bfloat16 widened.
        case: Name of the case.
    """
    handed_out = None if example is None else PORT_DATA.hand_out(example)
    yield from _example_rows(handed_out, "", outputs, "", case, skip_motifs=False)


def _made(
    port: PortData, record: Record, draws: Draws, config: ExampleConfig, tables: Mapping[str, Any]
) -> Example | None:
    example = port.make(record, draws, config, **tables)
    return None if example is None else port.hand_out(example)


def port_arrays(folder: Path, port: PortData = PORT_DATA) -> Iterator[tuple[str, np.ndarray]]:
    """What the port draws and makes of the recorded examples: (what, array), in the order of the recording.

    Args:
        folder: As for ``compare_recorded_data``.
        port: What makes the port's examples.
    """
    with h5py.File(folder / RECORDING) as file:
        for kind in KINDS:
            records = list(port.read(folder / f"{kind}.tfr"))
            for (_, seed, number), group in _recorded(file[kind]):
                config, record = _config(kind, group), records[number]
                if config.motif_scaling == "z_score":
                    config = dataclasses.replace(config, use_motif_activity=False)
                drawn, _ = attempt(lambda s=seed, r=record, c=config: port.source(s).draw(r, c))
                made = {"draws": drawn}
                for name, draws in (("example", recorded_draws(group["draws"], record, config)), ("whole", drawn)):
                    if draws is not None:
                        made[name], _ = attempt(lambda d=draws, r=record, c=config: _made(port, r, d, c, {}))
                for name, record_of_port in made.items():
                    if record_of_port is None:
                        continue
                    fields = record_of_port._fields if isinstance(record_of_port, Example) else _DRAWN
                    for field in fields:
                        array = _numbers(getattr(record_of_port, field))
                        if array is not None:
                            yield f"{name}: {field}", array


_DRAWN = tuple(field.name for field in dataclasses.fields(Draws))


def not_scaled(kind: str, tables: Mapping[str, Any]) -> bool:
    """Whether the motifs of a recording cannot be compared, for want of the tables that scaled them."""
    return kind == "pretrain_val" and not tables


def not_compared_data() -> tuple[NotCompared, ...]:
    """What the rung leaves out, by name."""
    return (
        NotCompared(
            side="data recorded",
            name="motif activity of pre-training's validation",
            reason="scaled by two published tables that are not part of the repository; a test that is given them "
            "compares it",
        ),
        NotCompared(
            side="data recorded",
            name="the order of files and batches",
            reason="the original reads its files in parallel in no fixed order",
        ),
    )


def recorded_draws(group: Any, record: Record, config: ExampleConfig) -> Draws:
    """The original's draws, as the port takes them.

    Args:
        group: Recorded draws of one example.
        record: The record.
        config: How the example was made.
    """
    values = {name.partition("_")[2] if name[0].isdigit() else name: np.asarray(group[name][()]) for name in group}
    candidates = peak_candidates(record, config)
    order = values["mask_perm_peaks"]
    peak = int(candidates[order[0]]) if len(candidates) else None
    kept = values["mask_keep"].astype(bool)
    seen, most = unmask_candidates(visible_bins(peak, kept, config), config)
    blocks = values.get("noise_perm_blocks")
    atac, sequence = values.get("atac_replacement_uniform"), values.get("sequence_replacement")
    return Draws(
        shift=int(values["shift"]),
        reverse_complement=bool(values["rev_comp_uniform"] > 0.5)
        if "rev_comp_uniform" in values
        else bool(values["rev_comp"]),
        boost=config.training and int(values["atac_mask_int"]) == 0,
        peak=peak,
        kept_regions=kept,
        unmasked=seen[values["mask_perm_unmask"]][:most],
        atac_noise=values["atac_normal"],
        motif_noise=values["motif_normal"].reshape(-1),
        block_order=blocks,
        atac_replacement=None if atac is None else atac.reshape(-1, 1),
        sequence_replacement=None if sequence is None else sequence.reshape(-1).astype(np.uint8),
    )


def _recorded(group: Any) -> Iterator[tuple[tuple[str, int, int], Any]]:
    for variant, seeds in group.items():
        for seed, records in seeds.items():
            for number, recorded in records.items():
                yield (variant, int(seed.removeprefix("seed")), int(number.removeprefix("record"))), recorded


def _config(kind: str, group: Any) -> ExampleConfig:
    model, _, mode = kind.partition("_")
    arguments = {"max_shift": DEFAULT_SHIFT[mode]} | json.loads(group.attrs["arguments"])
    return ExampleConfig(
        **arguments,
        training=mode == "tr",
        finetuning=model == "finetune",
        motif_scaling="z_score" if kind == "pretrain_val" else "min_max",
    )


def _draw_rows(drawn: Draws | None, error: str, expected: Draws, case: str) -> Iterator[Comparison]:
    for field in dataclasses.fields(Draws):
        truth: Any = getattr(expected, field.name)
        found: Any = None if drawn is None else getattr(drawn, field.name)
        if field.name == "peak":
            # The one draw of which there may be none.
            truth, found = (NO_PEAK if value is None else value for value in (truth, found))
        if field.name == "unmasked":
            # There may be none, so their number stands in front.
            truth, found = (None if value is None else [len(value), *value] for value in (truth, found))
        if truth is not None or found is not None:
            yield _row(_numbers(found), _numbers(truth), DRAWS, field.name, case, error)


def _example_rows(
    example: Example | None,
    error: str,
    outputs: Mapping[str, np.ndarray],
    owner: str,
    case: str,
    *,
    skip_motifs: bool,
) -> Iterator[Comparison]:
    for name, (field, part) in OUTPUTS.items():
        if name not in outputs or (skip_motifs and name == "motif_activity"):
            continue
        found = None if example is None else getattr(example, field)
        yield _row(_numbers(found), _numbers(outputs[name]), owner or part, field, case, error)
    if example is not None:
        recorded = {OUTPUTS[name][0] for name in outputs if name in OUTPUTS}
        for field in Example._fields:
            if field not in recorded and getattr(example, field) is not None:
                detail = "the original hands out nothing of this name"
                yield _row(None, _numbers(getattr(example, field)), owner or AUGMENTATION, field, case, detail)


def _numbers(value: Any) -> np.ndarray | None:
    return None if value is None else np.atleast_1d(np.asarray(value)).astype(np.float64)


def _row(
    found: np.ndarray | None, expected: np.ndarray | None, layer: str, quantity: str, case: str, detail: str
) -> Comparison:
    return compare(
        found,
        expected,
        gate=DATA,
        case=f"data recorded: {case}",
        reading=Reading.ISOLATED,
        precision="exact",
        mode="",
        tolerance="exact",
        reference_path=layer,
        port_path=layer,
        layer=layer,
        quantity=quantity,
        detail=detail,
    )

"""The protocol buffer messages inside a TensorFlow checkpoint, declared here so that TensorFlow is not needed.

The descriptors live in a pool of their own: the same message names may be registered by TensorFlow in the same process.
Field numbers are those of tensorflow/core/protobuf/{tensor_bundle,trackable_object_graph}.proto and of the checkpoint
state file; only fields that occur in checkpoints are declared, unknown ones are kept by the library.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "epibert.checkpoint"
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "fixed32": _Field.TYPE_FIXED32,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
}

# message -> field -> (number, type); a type in brackets is repeated, a type that is no scalar is a message.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "VersionDef": {"producer": (1, "int32"), "min_consumer": (2, "int32"), "bad_consumers": (3, "[int32]")},
    "BundleHeader": {"num_shards": (1, "int32"), "endianness": (2, "int32"), "version": (3, "VersionDef")},
    "Dimension": {"size": (1, "int64"), "name": (2, "string")},
    "TensorShape": {"dim": (2, "[Dimension]"), "unknown_rank": (3, "bool")},
    "Extent": {"start": (1, "int64"), "length": (2, "int64")},
    "TensorSlice": {"extent": (1, "[Extent]")},
    "BundleEntry": {
        "dtype": (1, "int32"),
        "shape": (2, "TensorShape"),
        "shard_id": (3, "int32"),
        "offset": (4, "int64"),
        "size": (5, "int64"),
        "crc32c": (6, "fixed32"),
        "slices": (7, "[TensorSlice]"),
    },
    "ObjectReference": {"node_id": (1, "int32"), "local_name": (2, "string")},
    "SerializedTensor": {"name": (1, "string"), "full_name": (2, "string"), "checkpoint_key": (3, "string")},
    "SlotVariable": {
        "original_variable_node_id": (1, "int32"),
        "slot_name": (2, "string"),
        "slot_variable_node_id": (3, "int32"),
    },
    "RegisteredSaver": {"name": (1, "string"), "object_name": (2, "string")},
    "BoolValue": {"value": (1, "bool")},
    "TrackableObject": {
        "children": (1, "[ObjectReference]"),
        "attributes": (2, "[SerializedTensor]"),
        "slot_variables": (3, "[SlotVariable]"),
        "registered_saver": (4, "RegisteredSaver"),
        "has_checkpoint_values": (5, "BoolValue"),
    },
    "TrackableObjectGraph": {"nodes": (1, "[TrackableObject]")},
    "CheckpointState": {
        "model_checkpoint_path": (1, "string"),
        "all_model_checkpoint_paths": (2, "[string]"),
        "all_model_checkpoint_timestamps": (3, "[double]"),
        "last_preserved_timestamp": (4, "double"),
    },
}


def _build() -> dict[str, Any]:
    """Register the messages above in a private pool; returns one message class per name."""
    file = descriptor_pb2.FileDescriptorProto(name="epibert_checkpoint.proto", package=_PACKAGE, syntax="proto3")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, declared) in fields.items():
            repeated, kind = declared.startswith("["), declared.strip("[]")
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _Field.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name)
    return {
        name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.message_types_by_name.items()
    }


_CLASSES = _build()
BundleHeader = _CLASSES["BundleHeader"]
BundleEntry = _CLASSES["BundleEntry"]
TrackableObjectGraph = _CLASSES["TrackableObjectGraph"]
CheckpointState = _CLASSES["CheckpointState"]

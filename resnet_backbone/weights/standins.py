"""What training programs pickle beside weights, and what is built in its place.

torch's safe unpickler refuses every name that it does not know. The names here are those of plain values (NumPy
scalars, paths, dates, options) that many programs save with their weights. Each is answered by a class or function of
this module or of the standard library that builds a plain value; nothing of NumPy, OmegaConf or the other packages is
imported or called.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .pickled import array_names


class Unread:
    """Stands for an object that no weights depend on; what it was made of is dropped."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _PlainDict:
    """Stands for a subclass of dict; its items are kept. torch's unpickler sets the items of few types."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


_NUMBERS = "bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 str_"
_UNREAD = (
    *(f"numpy.{name}" for name in _NUMBERS.split()),
    "mmengine.logging.history_buffer.HistoryBuffer",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "Path", "String")),
    "typing.Any",
)
_DICTS = (
    "collections.defaultdict",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)
_PLAIN: tuple[Callable[..., Any], ...] = (
    bool, dict, float, frozenset, int, list, slice, str, tuple,
    argparse.Namespace, types.SimpleNamespace,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
)  # fmt: skip


def safe_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The names that a torch file may hold besides those that torch allows.

    Returns:
        (what is called in its place, full name) of each, as `torch.serialization.safe_globals` takes them.
    """
    names: dict[str, Callable[..., Any]] = {f"{kind.__module__}.{kind.__name__}": kind for kind in _PLAIN}
    names |= {f"{module}.{name}": standin for (module, name), standin in array_names().items() if name != "encode"}
    names |= dict.fromkeys(_UNREAD, Unread) | dict.fromkeys(_DICTS, _PlainDict)
    names["torch.torch_version.TorchVersion"] = str
    names["types.SimpleNamespace"] = types.SimpleNamespace
    for module in ("pathlib", "pathlib._local"):  # the second is Python 3.13's
        names |= {f"{module}.{name}": pathlib.PurePosixPath for name in ("PosixPath", "PurePosixPath")}
        names |= {f"{module}.{name}": pathlib.PureWindowsPath for name in ("WindowsPath", "PureWindowsPath")}
    return [(standin, name) for name, standin in names.items()]

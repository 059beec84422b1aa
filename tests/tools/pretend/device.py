"""An accelerator simulated on the CPU: tensors of device "pretend:0", whose numbers lie in the memory of the host.

What CUDA refuses is refused: a tensor of the CPU meets one of the device only as a number, as an index, or in a copy.
Everything for which the host of a GPU would wait is counted, by the line of this project that asked for it (`waits`).
Numbers of kernels, streams and memory are not simulated.

Import this module in a process of its own and before any backward pass, because autograd starts the threads of its
devices at the first one.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  its operators are registered below
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
ROOT = Path(__file__).resolve().parents[3]
aten: Any = torch.ops.aten

# operators whose result has a size, or is a number, that the host must know
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
    "equal",
    "nms",
    "repeat_interleave",
}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"copy_", "_to_copy"}
# autocast of CUDA: these run in half precision; what else has a rule there runs in float32
IN_HALF = {"conv2d", "conv_transpose2d.input", "convolution", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm"}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # those that autocast converts


class PretendTensor(torch.Tensor):
    """A tensor of the device.

    Attributes:
        host: the CPU tensor that holds its numbers.
        is_number: whether it was made of a Python number, which CUDA leaves on the host.
    """

    host: torch.Tensor
    is_number = False
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> PretendTensor:
        layout = host.size(), host.stride(), host.storage_offset()
        # in inference mode a view of an ordinary tensor is an ordinary tensor
        with torch.inference_mode(host.is_inference()):
            made = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=host.dtype, device=DEVICE)
        return made

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
            return op.decompose(*args, **(kwargs or {}))
        return run(op, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, value: PretendTensor) -> None:
        """What `Module.to(dtype)` does to parameters."""
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = value.host

    # torch implements these below the dispatcher, where it looks for a storage
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"pretend({self.host!r})"

    def __format__(self, spec: str) -> str:
        return format(self.cpu(), spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.host.__reduce_ex__(protocol)  # in a file, a tensor of the CPU

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            new = PretendTensor(self.host.clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                new._is_param = True
            memo[id(self)] = new
        return memo[id(self)]


def run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check the devices of an operator's tensors, count its waits, and run it on the CPU."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    indices = [x for x in args[1] if x is not None] if op._opname in INDEXING else []
    for tensor in tensors:
        is_number = not tensor.ndim and torch.Tag.pointwise in op.tags
        is_index = any(tensor is index for index in indices)
        if not (isinstance(tensor, PretendTensor) or is_number or is_index or op._opname in COPIES):
            shape = tuple(tensor.shape)
            raise RuntimeError(f"Expected all tensors to be on the same device: {op} met {shape} on the CPU")
    to_host = torch.device(kwargs.get("device") or DEVICE).type == "cpu"
    _count(op, args, indices, to_host or not isinstance(args[0], PretendTensor))
    if torch.Tag.inplace_view in op.tags and op._opname != "detach_":
        with no_dispatch():  # the shape of the wrapper changes with that of its tensor
            torch._C._set_meta_in_tls_dispatch_include(True)
            op(*args, **kwargs)
            torch._C._set_meta_in_tls_dispatch_include(False)
    plain, options = tree_map_only(PretendTensor, lambda x: x.host, (args, kwargs))
    options |= {"device": torch.device("cpu")} if "device" in options else {}
    out = op(*plain, **options)
    if to_host:
        return out
    known = {id(getattr(x, "host", x)): x for x in tensors}  # an operator in-place returns its argument
    return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else PretendTensor(x), out)


_counted: Counter[tuple[str, str]] = Counter()
_pinned: dict[int, torch.Tensor] = {}  # storage -> a tensor that keeps it alive


@contextmanager
def waits() -> Iterator[Counter[tuple[str, str]]]:
    """Count the waits of a block.

    Yields:
        (what, "file:line") -> how often the host would wait there.
    """
    global _counted
    counted, before = Counter[tuple[str, str]](), _counted
    _counted = counted
    try:
        yield counted
    finally:
        _counted = before


def _count(op: Any, args: Any, indices: Sequence[torch.Tensor], to_host: bool) -> None:
    name, what = op._opname, []
    if name in WAITING and not (name == "repeat_interleave" and len(args) > 1):
        what.append(name)
    if name in COPIES and to_host:
        what.append("copy to the host")
    if name == "copy_" and not to_host and not isinstance(args[1], PretendTensor):
        non_blocking = len(args) > 2 and args[2]
        if not (non_blocking and args[1].untyped_storage().data_ptr() in _pinned):
            what.append("copy from memory that is not pinned" if non_blocking else "copy from the host")
    # a mask with one number is a fill, for which nothing is counted
    is_fill = "put" in name and len(indices) == 1 and not args[2].ndim and _is_number(args[2])
    what += ["index by a mask" for index in indices if index.dtype == torch.bool and not is_fill]
    what += ["copy from the host" for index in indices if not isinstance(index, PretendTensor)]
    if what:
        _counted.update((one, _line()) for one in what)


def _is_number(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" or bool(getattr(tensor, "is_number", False))


def _line() -> str:
    """The innermost line of this project, without its tests."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and not {".venv", "tests"} & set(path.relative_to(ROOT).parts):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "a backward pass, or a library"


def _pin(tensor: torch.Tensor) -> torch.Tensor:
    """`Tensor.pin_memory`: the copy's memory is known to be pinned."""
    copy = tensor.clone()
    _pinned[copy.untyped_storage().data_ptr()] = copy
    return copy


def _make(op: Any, *args: Any, **kwargs: Any) -> PretendTensor:
    """Run an operator that makes a tensor of none."""
    made = PretendTensor(op(*args, **{**kwargs, "device": torch.device("cpu")}))
    made.is_number = op is aten.scalar_tensor.default
    return made


def _autocast(op: Any, *args: Any, **kwargs: Any) -> Any:
    floats = [x for x in tree_leaves((args, kwargs)) if isinstance(x, PretendTensor) and x.is_floating_point()]
    dtype = torch.get_autocast_dtype(NAME) if op.name().partition("::")[2] in IN_HALF else torch.float32
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        args, kwargs = tree_map_only(PretendTensor, lambda x: x.to(dtype) if x.dtype in FLOATS else x, (args, kwargs))
        out = op(*args, **kwargs)
        if op.namespace == "torchvision" and out.is_floating_point():
            return out.to(floats[0].dtype)  # as torchvision's own rule
        return out


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    return run(aten.copy_.default, (target, source, non_blocking), {})


def _register() -> list[torch.library.Library]:
    """Register the device, the operators that make tensors, and autocast; they live as long as the libraries."""
    module: Any = _DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.get_rng_state = lambda *_: torch.get_rng_state()  # random numbers are the CPU's
    module.set_rng_state = lambda *_: None
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    torch.Tensor.pin_memory = lambda self, device=None: _pin(self)  # type: ignore[method-assign, assignment]
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    libraries = {space: torch.library.Library(space, "IMPL") for space in ("aten", "torchvision")}
    libraries["aten"].impl("_copy_from", _copy_from, "PrivateUse1")  # torch.tensor(..., device=) copies by this
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        if space in libraries and not any(word in name for word in ("sparse", "quantized", "nested", "from_file")):
            for key, kernel in _kernels(name, space, rest):
                libraries[space].impl(rest, kernel, key)
    return [everything, *libraries.values()]


def _kernels(name: str, space: str, rest: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Dispatch key and kernel of an operator that needs one."""
    base, _, overload = rest.partition(".")
    op: Any = getattr(getattr(getattr(torch.ops, space), base, None), overload or "default", None)
    arguments = {} if op is None else {a.name: str(a.type) for a in op._schema.arguments}
    if "device" in arguments and not any("Tensor" in kind for kind in arguments.values()):
        yield "PrivateUse1", functools.partial(_make, op)
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA"):
        yield "AutocastPrivateUse1", functools.partial(_autocast, op)


_libraries = _register()
DEVICE = torch.device(NAME, 0)

"""oneDNN's primitives on Paddle tensors: the library lies in Paddle's CPU wheel, whose dynamic mode never calls it.

ctypes on the C API of oneDNN 3 (https://uxlfoundation.github.io/oneDNN, dnnl.h): float32 on a CPU, executed at once on
the calling thread's OpenMP team. `Primitive` is all that a layer needs.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

# dnnl_types.h: what an argument is to a primitive.
SRC, SRC_1, DST, WEIGHTS, BIAS, MEAN, VARIANCE, SCALE, SHIFT = 1, 2, 17, 33, 41, 49, 50, 51, 52
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS, DIFF_SCALE, DIFF_SHIFT = 129, 145, 161, 169, 255, 256
FIRST_STEP = 0x8000  # of `steps`, beside what is the step's own argument
FORWARD, BACKWARD, BACKWARD_DATA = 64, 128, 160
CONVOLUTION_DIRECT, SWISH, GELU_ERF, ADD, MULTIPLY, SOFTMAX = 0x1, 0x2C, 0x31, 0x1FFF0, 0x1FFF1, 0x30000
USE_GLOBAL_STATISTICS, USE_SCALE, USE_SHIFT = 1, 2, 4
_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT = 1, 1, 3, 1
_QUERIES = {SRC: 129, DIFF_SRC: 130, WEIGHTS: 131, DIFF_WEIGHTS: 132, DST: 133, DIFF_DST: 134}
_Handle = ctypes.c_void_p


class _Version(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("major", "minor", "patch")]


class _Argument(ctypes.Structure):
    _fields_ = [("index", ctypes.c_int), ("memory", _Handle)]


@functools.cache
def _library():
    """The loaded library, or None where Paddle has none, or one of another major version."""
    try:
        library = ctypes.CDLL(str(Path(paddle.sysconfig.get_lib()) / "libdnnl.so.3"))
    except OSError:
        return None
    library.dnnl_version.restype = ctypes.POINTER(_Version)
    if library.dnnl_version().contents.major != 3:
        return None
    library.dnnl_primitive_desc_query_md.restype = _Handle
    library.dnnl_primitive_desc_query_md.argtypes = [_Handle, ctypes.c_int, ctypes.c_int]
    library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    library.dnnl_memory_set_data_handle.argtypes = [_Handle, _Handle]
    library.dnnl_primitive_execute.argtypes = [_Handle, _Handle, ctypes.c_int, ctypes.POINTER(_Argument)]
    return library


def is_available() -> bool:
    """Whether this Paddle has oneDNN beside it."""
    return _library() is not None


def _check(status, name):
    if status:
        raise RuntimeError(f"oneDNN's {name} failed with status {status}; ONEDNN_VERBOSE=all says why")


def steps(*added: tuple) -> Any:
    """What a primitive does with each number of its result before it writes it: (ADD, layout of the other) or (SWISH,),
    one after another. The other's argument is `FIRST_STEP | SRC_1` in the first step."""
    attributes, chain = new("primitive_attr"), new("post_ops")
    for operation, *layout in added:
        if layout:
            _check(_library().dnnl_post_ops_append_binary(chain, operation, *layout), "post_ops_append_binary")
        else:
            options = ctypes.c_float(1.0), ctypes.c_float(0.0)
            _check(_library().dnnl_post_ops_append_eltwise(chain, operation, *options), "post_ops_append_eltwise")
    _check(_library().dnnl_primitive_attr_set_post_ops(attributes, chain), "primitive_attr_set_post_ops")
    return attributes


def new(kind: str, *arguments: Any) -> Any:
    """Call `dnnl_<kind>_create`, with its first argument left out. Returns the handle, which is never freed."""
    handle = _Handle()
    _check(getattr(_library(), f"dnnl_{kind}_create")(ctypes.byref(handle), *arguments), kind)
    return handle


@functools.cache
def engine() -> Any:
    """The processor."""
    return new("engine", _CPU, ctypes.c_size_t(0))


@functools.cache
def _stream():
    return new("stream", engine(), _IN_ORDER)


def integers(*values: int) -> Any:
    """An array of dimensions."""
    return (ctypes.c_int64 * len(values))(*values)


def plain(*shape: int) -> Any:
    """The layout of a contiguous float32 tensor."""
    strides = [1]
    for length in shape[:0:-1]:
        strides.insert(0, strides[0] * length)
    return strided(shape, strides)


def strided(shape: Sequence[int], strides: Sequence[int]) -> Any:
    """The layout of float32 numbers that lie `strides` numbers apart."""
    return _make_layout("memory_desc_create_with_strides", shape, integers(*strides))


def any_layout(*shape: int) -> Any:
    """Float32 in whichever layout suits the primitive best."""
    return _make_layout("memory_desc_create_with_tag", shape, _ANY_LAYOUT)


def _make_layout(function, shape, layout):
    handle = _Handle()
    create = getattr(_library(), f"dnnl_{function}")
    _check(create(ctypes.byref(handle), len(shape), integers(*shape), _FLOAT32, layout), function)
    return handle


def empty(shape: Sequence[int]) -> Tensor:
    """A float32 tensor whose values are not set; `paddle.empty` takes five times as long to call."""
    return paddle._C_ops.empty(shape, paddle.float32, _PLACE)


_PLACE = paddle.CPUPlace()
_scratch_buffers: dict = {}  # argument -> (bytes, pointer, tensor)


def _scratch(argument, size):
    """Pointer to `size` bytes for one argument in a layout of the library's own; the same for all primitives."""
    if argument not in _scratch_buffers or _scratch_buffers[argument][0] < size:
        tensor = empty([-(-size // 4)])
        _scratch_buffers[argument] = size, tensor.data_ptr(), tensor
    return _scratch_buffers[argument][1]


class Primitive:
    """A primitive that takes contiguous float32 tensors; what it wants in a layout of its own is copied on the way.

    To be called from one thread at a time, since the copies of all primitives share their memory.

    descriptor: handle of its primitive descriptor. tensors: {argument: layout of the tensor}. results: those arguments
    that it writes.
    """

    def __init__(self, descriptor: Any, tensors: Any, results: Any):
        library = _library()
        self._copies_in, self._copies_out, self._sizes, layouts = [], [], {}, dict(tensors)
        for argument, layout in tensors.items():
            query = _QUERIES.get(argument)
            own_layout = _Handle(library.dnnl_primitive_desc_query_md(descriptor, query, 0)) if query else layout
            if library.dnnl_memory_desc_equal(own_layout, layout):
                continue
            layouts[argument] = own_layout
            self._sizes[argument] = library.dnnl_memory_desc_get_size(own_layout)
            source, target = (own_layout, layout) if argument in results else (layout, own_layout)
            copies = self._copies_out if argument in results else self._copies_in
            copies.append((argument, _Call(_reorder_descriptor(source, target), {SRC: source, DST: target})))
        self._call = _Call(descriptor, layouts)

    def pack(self, weights: Any) -> Any:
        """A copy of the weights (Tensor, or address of its numbers) in the primitive's own layout; None if that is
        the tensor's."""
        for argument, copy in self._copies_in:
            if argument == WEIGHTS:
                packed = empty([-(-self._sizes[argument] // 4)])
                copy({SRC: _address(weights), DST: packed.data_ptr()})
                return packed
        return None

    def __call__(self, tensors, packed_weights=None):
        """tensors: {argument: Tensor, or the address of its numbers}, with those to be written among them.

        packed_weights: of `pack`, for the weights among `tensors`.
        """
        pointers = {argument: _address(tensor) for argument, tensor in tensors.items()}
        if not self._sizes:
            self._call(pointers)
            return
        ready = {} if packed_weights is None else {WEIGHTS: packed_weights.data_ptr()}
        own = {argument: ready.get(argument) or _scratch(argument, size) for argument, size in self._sizes.items()}
        inner = pointers | own
        for argument, copy in self._copies_in:
            if argument not in ready:
                copy({SRC: pointers[argument], DST: inner[argument]})
        self._call(inner)
        for argument, copy in self._copies_out:
            copy({SRC: inner[argument], DST: pointers[argument]})


def _address(tensor):
    return tensor if isinstance(tensor, int) else tensor.data_ptr()


def reorder(source: Any, target: Any) -> Primitive:
    """A primitive that copies from one layout into another."""
    return Primitive(_reorder_descriptor(source, target), {SRC: source, DST: target}, {DST})


def _reorder_descriptor(source, target):
    return new("reorder_primitive_desc", source, engine(), target, engine(), None)


class _Call:
    """A created primitive and the memory objects that it is called with."""

    def __init__(self, descriptor, layouts):
        self._primitive = new("primitive", descriptor)
        memories = {index: new("memory", layout, engine(), None) for index, layout in layouts.items()}
        self._arguments = (_Argument * len(layouts))(*(_Argument(index, memory) for index, memory in memories.items()))
        self._memories = list(memories.items())
        self._point, self._execute = _library().dnnl_memory_set_data_handle, _library().dnnl_primitive_execute

    def __call__(self, pointers):
        for index, memory in self._memories:
            self._point(memory, pointers[index])  # which cannot fail for memory of this process
        status = self._execute(self._primitive, _stream(), len(self._arguments), self._arguments)
        _check(status, "primitive_execute")

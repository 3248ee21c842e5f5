"""A device like a Mac's GPU, for tests: its tensors compute on the CPU, and none can be float64, as Metal has none.

It goes by the name "meta", because torch lets a build without GPUs use no other name.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")


class OnMac(torch.Tensor):
    """A tensor that says it is on the device. Its numbers are `held`, on the CPU."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Constructor(TorchFunctionMode):
    """What torch does without an operator: `torch.tensor(values, device=…)`, which makes no numbers on "meta", and `tolist`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(options.get("device") or "cpu") == DEVICE:
            return func(*args, **{**options, "device": None}).to(DEVICE)
        if func is torch.Tensor.tolist and isinstance(args[0], OnMac):
            return args[0].held.tolist()
        return func(*args, **options)


@contextmanager
def mac():
    """A context in which `.to(DEVICE)` and `device=DEVICE` give tensors on the device. A float64 tensor there is a TypeError."""
    with _Operators(), _Constructor():
        yield


def _call(func, args, kwargs):
    """The operator on the CPU. Its results are on the device where that is asked for, or else where an argument is."""
    leaves = tree_leaves((args, kwargs))
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    there = any(isinstance(leaf, OnMac) for leaf in leaves) if asked is None else asked == DEVICE
    if func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], OnMac)
    plain, named = tree_map(_on_cpu, (args, kwargs))
    known = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, OnMac)}  # what an operator changes in place

    def placed(leaf):
        if not isinstance(leaf, torch.Tensor) or not there:
            return leaf
        if leaf.dtype == torch.float64:
            raise TypeError(f"float64 on a device that has none, by {func}")
        return known[id(leaf)] if id(leaf) in known else OnMac(leaf)

    return tree_map(placed, func(*plain, **named))


def _on_cpu(leaf):
    if isinstance(leaf, torch.device) and leaf == DEVICE:
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, OnMac) else leaf

"""Which device a command uses, and what it can do and hold."""

import os

import torch

from highrank.errors import UserError
from highrank.launcher import launcher_number

__all__ = ["choose_device", "describe_device", "multiplies_bfloat16", "tf32_in_lstm", "total_memory"]


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` takes the GPU if there is one.

    Raises UserError for a device that this machine or highrank lacks, and for one GPU where several workers were
    started on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and os.environ.get("LOCAL_RANK"):  # a launcher's: a GPU for each worker of this machine
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif name.startswith("cuda:") and (workers := launcher_number("LOCAL_WORLD_SIZE")) > 1:
        raise UserError(
            f"device {name!r}: one GPU for {workers} workers; --device cuda gives each a GPU of its own", exit_code=2
        )
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"device {name!r}: expected cpu or cuda", exit_code=2)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # or what libraries do by themselves would open the first one too
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"device {name!r}: cannot be used here ({first_line})", exit_code=2) from error
    return device


def describe_device(device: torch.device | str, workers: int = 1) -> str:
    """What computes, for the run's log: bits may differ between any two of these."""
    device = torch.device(device)
    of_many = f", the first of {workers} workers" if workers > 1 else ""
    if device.type != "cuda":
        return f"torch {torch.__version__} on {device.type}, {torch.get_num_threads()} threads{of_many}"
    return (
        f"torch {torch.__version__} on {device} ({torch.cuda.get_device_name(device)}), CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, TF32 in its LSTM {'on' if tf32_in_lstm() else 'off'}"
        f"{of_many}"
    )


def tf32_in_lstm() -> bool:
    """Are float32 products of cuDNN's LSTM rounded to TF32, as they are unless somebody says otherwise?"""
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":  # heeded by cuDNN itself: PyTorch does not know of it
        return False
    # Not ``cudnn.allow_tf32``, which raises where a program has set this by its newer names; they follow the older one.
    return bool(torch.backends.cudnn.rnn.fp32_precision == "tf32")  # type: ignore[attr-defined]


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Has it instructions for products of bfloat16 numbers, which make them faster than those of float32 numbers?

    True where that is not known.
    """
    if torch.device(device).type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return True
    found = torch.cpu.get_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def total_memory(device: torch.device) -> int | None:
    """In bytes, taken or free; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system says
        return None

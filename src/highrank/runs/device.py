"""Which device a command uses."""

import torch

from highrank.errors import UserError

__all__ = ["choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` takes the accelerator if there is one. Raises UserError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"device {name!r}: cannot be used here ({first_line})", exit_code=2) from error
    return device

"""A model in a few lines: which parts it has, how many weights, and which of them are trained."""

from torch import nn

_DEPTH = 3


def summarise(module: nn.Module) -> str:
    """A table with a row for each part down to the third level, and the total.

    Weights shared by several parts count once in the total. Of a sharded module the whole weights are counted.

    >>> print(summarise(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
    part              weights      trainable  kind
    0                       9              9  Linear
    total                   9              9  Sequential
    """
    rows = [
        (name, part)
        for name, part in module.named_modules()
        if name and name.count(".") < _DEPTH and any(True for _ in part.parameters())
    ]
    lines = [f"{'part':<12} {'weights':>12} {'trainable':>14}  kind"]
    for name, part in [*rows, ("total", module)]:
        count = sum(p.numel() for p in part.parameters())
        trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
        lines.append(f"{name:<12} {count:>12} {trainable:>14}  {type(part).__name__.removeprefix('FSDP')}")
    return "\n".join(lines)

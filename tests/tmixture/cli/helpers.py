"""Calls of the command line."""

import torch

from tmixture.cli import main

D, N = 5, 700


def run(*arguments):
    return main([str(argument) for argument in arguments])


def fit_in(folder, *more):
    output = folder.parent / "mixture.safetensors"
    return output, run("fit", folder, "-k", 3, "-o", output, *more)


def stored(rows):
    """The rows as the folder holds them."""
    x = torch.as_tensor(rows)
    return torch.cat([x[:1000], x[1000:].bfloat16().float()])

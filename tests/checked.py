"""Annotations as facts: the type checker that `make types` runs tests with."""

from beartype import BeartypeConf, beartype


def check(function):
    """Arguments and results against annotations; of pytrees not, in which JAX puts shapes and flags of its own."""
    if isinstance(function, type) or function.__name__ == "__init__":
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)  # a whole number is a float

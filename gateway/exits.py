"""Exit codes, which follow sysexits, and what is said with them."""

from __future__ import annotations

#: A bad configuration, or a command that is not understood.
USAGE = 64
#: What can never work: a store, or an address that is taken.
UNAVAILABLE = 69


def unbound(error: OSError) -> str:
    """What is said of an address on which nobody can listen, and what to do about it."""
    return (
        f"an address cannot be bound: {error.strerror or error}; end what has it, or choose another: "
        "--listen (or `listen` in the file) is where clients come in, --admin (or `admin`) is for operators"
    )

"""`oncegate run --workers N` for N > 1: a parent, and N processes that each are a whole gate on one address.

parent    reserves the address, owns the admin listener, starts its workers and starts them again
child     one worker: a gate as with N = 1, less the admin listener
channel   what they say to each other

Clients are spread by the kernel (SO_REUSEPORT): a connection belongs to one worker for its life, and the parent
touches none of them. Workers share nothing but the store, so the promise among them is the promise among gates.
"""

from .parent import GaveUp, run

__all__ = ["GaveUp", "run"]

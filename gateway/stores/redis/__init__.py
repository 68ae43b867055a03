"""Records in Redis or Valkey: for a fleet.

servers    which server takes writes, and how it is found
reasons    why there is no connection, in words
pipeline   one connection, shared by everybody
link       a connection that is kept: made, watched, made again
waited     writes that count once replicas have them
bells      who waits for which record, and the connection that tells
findings   what a server says of itself, and what is wrong with it
permissions  what the gate's user may do
marker     whose keys these are, and whether they are all still here
primary    one server that takes writes, with all of the above
fleet      which primary has a record, where there is one
cluster    the same where there are many: slots, redirections, markers
examine    the same findings, for who asks and claims nothing
walk       from one record to the next, over all primaries
store      the port's verbs in commands, and script.lua
"""

from ..findings import Finding, Severity
from .examine import Examined, examine
from .findings import tempered
from .marker import Trust
from .servers import Address, Servers, Tls
from .store import RedisStore

__all__ = [
    "Address",
    "Examined",
    "Finding",
    "RedisStore",
    "Servers",
    "Severity",
    "Tls",
    "Trust",
    "examine",
    "tempered",
]

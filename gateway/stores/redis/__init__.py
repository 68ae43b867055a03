"""Records in Redis or Valkey: for a fleet.

servers    which server takes writes, and how it is found
pipeline   one connection, shared by everybody
link       a connection that is kept: made, watched, made again
waited     writes that count once replicas have them
findings   what a server says of itself, and what is wrong with it
store      the port's verbs in commands, and script.lua
"""

from .servers import Address, Servers, Tls
from .store import COMMANDS, RedisStore

__all__ = ["COMMANDS", "Address", "RedisStore", "Servers", "Tls"]

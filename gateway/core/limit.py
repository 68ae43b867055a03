"""Every bound that a client, a service or all of them together can meet: the labels of `oncegate_limits_total`."""

from __future__ import annotations

from enum import StrEnum


class Limit(StrEnum):
    """Each by the name that it has in the file: in `limits`, but for the last four."""

    HEAD = "head"
    TARGET = "target"
    FIELDS = "fields"
    HEAD_TIMEOUT = "head_timeout"
    BODY_TIMEOUT = "body_timeout"
    BODY_RATE = "body_rate"
    WRITE_TIMEOUT = "write_timeout"
    IDLE = "idle"
    RESPONSE_IDLE = "response_idle"
    TUNNEL_IDLE = "tunnel_idle"
    HANDSHAKE = "handshake"
    CONNECTIONS = "connections"
    CONNECTIONS_PER_ADDRESS = "connections_per_address"
    PIPELINED = "pipelined"
    BUFFERS = "buffers"
    WAITERS = "waiters"
    WAITERS_PER_KEY = "waiters_per_key"
    #: Of a route.
    MAX_REQUEST = "max_request"
    MAX_RESPONSE = "max_response"
    #: `connections` of an upstream.
    UPSTREAM_CONNECTIONS = "upstream_connections"
    #: Of the process: `ulimit -n`.
    DESCRIPTORS = "descriptors"

"""Oncegate: a standalone idempotency gateway. One key, one effect, the same answer.

The way of one request, always forward: bytes → `edge.client` → a `Request` → `RouteTable.match` →
`decide.admit` → `store.claim` → (`decide.resolve`: replay, refuse, or wait and claim again) →
`edge.upstream`, one attempt → `decide.settle` → `store.settle` → `edge.render` → bytes; then one
`Account` of it to the observers.
"""

__version__ = "0.1.0"

from __future__ import annotations

from hypothesis import settings

#: How long an example takes says how busy the machine is, not whether the claim holds.
settings.register_profile("core", deadline=None)
settings.load_profile("core")

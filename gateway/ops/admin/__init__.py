"""The admin listener, for those who run the gate.

readiness   is it alive, is it ready, would it guard: of this process, or of a parent's workers
gatekeeper  who may come in: a bearer token, and no page of another origin
problems    what is said of what went wrong
forms       what operators ask and are told, as pydantic models: the bodies, the channel of workers, the document
desk        what an operator does to records, each change against the version that was shown
names       which record a key has
recent      the duplicates of late, of this process
audit       who changed what, and why: on the disk before the answer
room        /keys and its kin
openapi     the document of all that
listener    the application
"""

from .audit import Audit
from .desk import Desk, DeskAway, LocalDesk
from .gatekeeper import Gatekeeper
from .listener import admin_app, admin_app_of
from .names import Names
from .readiness import Guarded, Readiness, Ready, Witness
from .recent import Recent
from .room import Room

__all__ = [
    "Audit",
    "Desk",
    "DeskAway",
    "Gatekeeper",
    "Guarded",
    "LocalDesk",
    "Names",
    "Readiness",
    "Ready",
    "Recent",
    "Room",
    "Witness",
    "admin_app",
    "admin_app_of",
]

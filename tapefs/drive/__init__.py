"""A tape drive: SSC primitives over a transport whose shape this layer defines.

`TapeDrive.open` probes what the drive can do and hides what it cannot. Which wire the transport
is (USB, the emulated target) is chosen by the daemon; nothing here knows.
"""

from __future__ import annotations

from tapefs.drive.activity import Activity as Activity
from tapefs.drive.activity import Motion as Motion
from tapefs.drive.health import DriveHealth as DriveHealth
from tapefs.drive.initiator import DriveStatistics as DriveStatistics
from tapefs.drive.position import PositionMismatch as PositionMismatch
from tapefs.drive.position import PositionUnknown as PositionUnknown
from tapefs.drive.position import TapeAddress as TapeAddress
from tapefs.drive.position import TapePosition as TapePosition
from tapefs.drive.probe import Capabilities as Capabilities
from tapefs.drive.probe import DriveIdentity as DriveIdentity
from tapefs.drive.probe import UnsupportedDrive as UnsupportedDrive
from tapefs.drive.tape import TapeDrive as TapeDrive
from tapefs.drive.tape import WriteOutcome as WriteOutcome
from tapefs.drive.transport import Transport as Transport

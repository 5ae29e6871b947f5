"""The control socket of a mount: JSON lines, so that any command or script may ask.

A mount listens on `socket_path(mountpoint)`. A request is one line, `{"op": "status"}`,
`"generations"`, `"sync"`, `"wait_finalized"` or, with more fields, `"verify"`. The answer is any
number of

    {"event": "accepted"}                                      the wait has begun
    {"event": "progress", "phase": ..., "done_bytes": ..., "total_bytes": ..., "message": ...}

and then exactly one of

    {"event": "result", "result": {...}}
    {"event": "error", "message": "one sentence", "exit_code": N}

`status` and `generations` are answered at once, also while the mount waits for the tape. The
server runs in the daemon's trio loop and touches nothing but the `Service`; clients are ordinary
blocking code.
"""

from tapefs.control.client import Connection, all_statuses, request
from tapefs.control.protocol import (
    CLIENTS_MAX,
    LAST_ANSWERS_S,
    Event,
    Report,
    Service,
    error_from,
    runtime_dir,
    socket_path,
)

__all__ = [
    "CLIENTS_MAX",
    "LAST_ANSWERS_S",
    "Connection",
    "Event",
    "Report",
    "Service",
    "all_statuses",
    "error_from",
    "request",
    "runtime_dir",
    "socket_path",
]

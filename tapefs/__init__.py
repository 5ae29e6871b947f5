"""tapefs: a USB tape drive mounted as a directory, on a tape that any Unix can read.

The layers, each importing only from those below it (ARCHITECTURE.md says why):

    cli        one module per command family
    daemon     builds everything, owns the root nursery and the signals
    control    the socket by which commands talk to a running mount
    fuse       POSIX words in, archive words out, errno at the edge
    archive    policy: what happens to a file, and when
    catalog    SQLite: what the tape says, and what users see
    volume     what is on tape, exact to the byte
    entries    the nouns that tape and catalog share
    drive      SSC primitives over a transport
    emulator   a tape drive made of a file
    usb        Bulk-Only Transport and pyusb
    scsi       CDBs, parameter data, sense
"""

__version__ = "0.1.0"

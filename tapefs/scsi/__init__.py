"""SCSI commands, parameter data and sense, as bytes and dataclasses. No I/O."""

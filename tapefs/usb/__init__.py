"""The USB wire: Bulk-Only Transport, host end, and the device behind it."""

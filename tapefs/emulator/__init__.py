"""A tape drive made of a file: cartridge, SSC device server, Bulk-Only device end."""

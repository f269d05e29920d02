"""The default builder: published wheels, hash-locked, slimmed to one SM."""

"""``manifest.json``: what a run was made of, so that it can be repeated, and told apart from one that only looks the same.

Versions, machine, device, seed, command, the state of the source code, and hashes of configuration and data. No secrets: of
the environment only the few names of `cvexp.manifest.machine.ENVIRONMENT` are taken. Absolute paths stand in command and
overrides alone. ``record`` writes and reads it; ``machine``, ``source_code`` and ``hashes`` find out what stands in it.
"""

from cvexp.manifest.record import check_data, command_line, read_manifest, typed_overrides, write_manifest

__all__ = ["check_data", "command_line", "read_manifest", "typed_overrides", "write_manifest"]

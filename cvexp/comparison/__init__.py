"""Finished runs beside each other: found, grouped over seeds, measured, drawn and written; the command is `cvexp.compare`."""

"""What ``python -m cvexp.bench`` is made of: models to measure, time, operations, tables, pictures."""

"""The LightningModules: one per kind of task, none knows a network by name."""

"""A score of two embeddings: one formula per file (contract 8)."""

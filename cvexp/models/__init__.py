"""One paper per file: network, head, decoding and the assembly of its loss."""

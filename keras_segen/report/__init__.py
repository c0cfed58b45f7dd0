"""Pages, tables and numbers: what people read of a result."""

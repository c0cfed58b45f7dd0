"""Pages, tables and numbers: results for people to read."""

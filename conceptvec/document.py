"""The results document: its types, its schema, and how a file is read."""

"""What people take along: control vectors, uploads, tables, a folder with a card."""

"""Figures, tables, the report and the explorer."""

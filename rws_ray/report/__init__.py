"""What people look at: figures (`report.figures`) and terminal text (`report.terminal`), both from plain arrays.

This room knows nothing of the rest of the package. matplotlib is loaded when a figure is drawn, rich when a progress
bar is shown on a terminal.
"""

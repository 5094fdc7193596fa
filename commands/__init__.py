"""What main.py does: a file or a folder for each mode, and what the modes share."""

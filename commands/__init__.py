"""The modes of main.py, a file or a folder each, and what they share."""

"""What main.py does in each mode: configuration, models and engine brought together."""

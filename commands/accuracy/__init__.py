"""Accuracy over labelled images: shares with intervals, the classes, the confusion matrix."""

"""Accuracy over labelled images: top-1 and top-5 with intervals, per class, and the confusion matrix."""

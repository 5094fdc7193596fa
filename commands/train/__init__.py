"""`--mode train`: weights trained on labelled images."""

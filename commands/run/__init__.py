"""`--mode run`: images through an executable, report and predictions."""

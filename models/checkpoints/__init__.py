"""Checkpoints: tensors in the formats and under the names of PyTorch, torchvision, timm and Hugging Face."""

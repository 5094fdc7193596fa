"""Trains a ResNet on arrays of images: recipe, augmentation, steps on the device, checkpoints to resume from."""

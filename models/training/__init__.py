"""Training of a ResNet from arrays of images: recipe, augmentation, steps on the device, checkpoints that resume."""

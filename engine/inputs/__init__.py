"""Where images come from: synthetic ones, a folder, or CIFAR-10."""

from engine.inputs.choice import open_source as open_source
from engine.inputs.source import Image as Image, ImageSource as ImageSource, UnreadableImage as UnreadableImage

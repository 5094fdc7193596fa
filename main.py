"""Classifies images with a sharded, ahead-of-time compiled ResNet or a model of your own.

python main.py --mesh 4x8 --threads 2
"""

from cambrian.commands.start import start

if __name__ == "__main__":
    start()

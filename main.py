"""Classifies images with a sharded, ahead-of-time compiled ResNet.

python main.py --mesh 4x8 --threads 2
"""

from cambrian.commands.cli import cli

if __name__ == "__main__":
    cli()

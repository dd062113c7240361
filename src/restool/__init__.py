"""restool: is ResT's gain real, and where does it come from?"""

__version__ = "0.1.0"

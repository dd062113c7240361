"""Runs inside the ``bfcl`` environment, behind walls: standard library and bfcl_eval only, nothing of restool."""

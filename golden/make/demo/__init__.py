"""Goldens of the official inference demo, whose one file the user hands in.

Nothing of that file is in this repository: these modules know its interface, not its text.
"""

"""Preferences from files and into files."""

"""Upgrades: a new server takes the listening socket over while the old one lets its streams end."""

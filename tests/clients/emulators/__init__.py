"""Providers on loopback that are as strict as the real ones, and fail on command."""

"""Filters of autorun's pages."""

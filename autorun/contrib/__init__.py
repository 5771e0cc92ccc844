"""Bridges to other packages, none of which autorun itself needs."""

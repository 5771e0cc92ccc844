"""Every row of a model, processed by this version of this analysis, and a record of it."""

__version__ = "0.1.0"

"""An app whose analysis does what its row says, and keeps a record outside of any database."""

"""The dropout study: many small models cut from one base, trained alike, and compared."""
